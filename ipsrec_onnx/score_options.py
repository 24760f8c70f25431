"""The options of scoring that its lists depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

from ipsrec_onnx.candidates import Layout
from ipsrec_onnx.card_opening import kind_of_gpus
from ipsrec_onnx.cards import DEFAULT_CARDS, CardOptions
from ipsrec_onnx.encoding import EncoderName, check_encoder
from ipsrec_onnx.errors import DataError, ExecutionProviderError
from ipsrec_onnx.retrieval import ColdUsers
from ipsrec_onnx.scored_chunk import BadRows, UnknownItems
from ipsrec_onnx.session import Device, refuse_missing


@dataclass(frozen=True)
class ScoreOptions:
    """What `score` is asked for; scoring.score says what each one means.

    Raises:
        DataError: two of them exclude each other.
        ExecutionProviderError: the encoder does not run on the device.
        ValueError: one has a value that it cannot have.
    """

    top_k: int
    layout: Layout
    keep_seen: bool
    unknown_items: UnknownItems
    cold_users: ColdUsers
    bad_rows: BadRows
    max_per_provider: int | None
    candidates_column: str | None
    approximate: float | None
    encoder: EncoderName
    device: Device
    fingerprints: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("layout", Layout),
            ("unknown_items", UnknownItems),
            ("cold_users", ColdUsers),
            ("bad_rows", BadRows),
        ):
            _check_choice(name, getattr(self, name), choices)
        check_encoder(self.encoder, self.device)
        if self.approximate is not None and not 0.0 < self.approximate <= 1.0:
            raise ValueError(f"approximate is {self.approximate}, expected a recall above 0, at most 1")
        if self.approximate is not None and self.candidates_column is not None:
            raise DataError(
                f"--approximate: the candidates of --candidates-column {self.candidates_column} are always scored "
                "exactly; leave one of the two out"
            )
        if self.fingerprints and self.layout == "long":
            raise DataError(
                "--layout long has no row for a user without candidates, and so no place for --fingerprints, which "
                "--since needs; leave one of the two out"
            )
        for name in ("top_k", "max_per_provider"):
            check_positive(name, getattr(self, name))


def check_cards(options: ScoreOptions, cards: CardOptions, *, here: bool = True) -> CardOptions:
    """Say early that the GPUs cannot do what is asked for; gives what searches for these options.

    Args:
        options: of scoring.
        cards: which GPUs, and what searches on them.
        here: are they this machine's?

    Raises:
        DataError: an approximate search is asked for on a GPU.
        ExecutionProviderError: the device is not there, there is none to search on, or GPUs are of several kinds.
    """
    if options.device == "cpu":
        if cards != DEFAULT_CARDS:
            raise ExecutionProviderError(
                "--gpus and --search are about GPUs, found --device cpu; add --device cuda, or leave them out"
            )
        return cards
    if here:
        refuse_missing(options.device)
        kind_of_gpus(cards.gpus)
    if options.approximate is None:
        return cards
    if cards.search not in ("auto", "cpu"):
        raise DataError(f"--approximate searches on the CPU, found --search {cards.search}; leave one of the two out")
    return replace(cards, search="cpu")


def check_shards(count: int, options: ScoreOptions, cards: CardOptions) -> None:
    """Say early that a catalog cannot be cut so for these options; cards as check_cards gave them.

    Raises:
        DataError: an approximate search is asked for, or there are fewer shards than GPUs.
        ValueError: there is no shard.
    """
    check_positive("catalog_shards", count)
    if count > 1 and options.approximate is not None:
        raise DataError(
            f"--approximate has one index of the whole catalog in memory, found --catalog-shards {count}; "
            "leave one of the two out"
        )
    if 1 < count < len(cards.gpus):
        raise DataError(
            f"--catalog-shards {count}: {len(cards.gpus)} GPUs share the shards, and some would have none; "
            f"give {len(cards.gpus)} or more, or fewer --gpus"
        )


def check_positive(name: str, number: int | None) -> None:
    """Refuse a number below 1; None is fine.

    Raises:
        ValueError: it is below 1.
    """
    if number is not None and number < 1:
        raise ValueError(f"{name} is {number}, expected 1 or more")


def _check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that the Literal does not list."""
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}, expected one of {get_args(choices)}")
