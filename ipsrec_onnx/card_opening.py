"""Opens GPUs for a job: what searches on them, and whether they can do what is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from ipsrec_kernels.item_table import ItemTable, items_by_norm, row_norms
from ipsrec_onnx.cards import (
    Card,
    CardOptions,
    Cards,
    EncodingCard,
    EncodingCards,
    SearchCard,
    SearchName,
    ShardedCards,
    memory_of_gpu,
)
from ipsrec_onnx.errors import ExecutionProviderError, ModelFileError
from ipsrec_onnx.machine import gpu_names
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.onnx_card import OnnxCard, OnnxEncodingCard, OnnxSearchCard
from ipsrec_onnx.onnx_rewrite import graph_with_table_input
from ipsrec_onnx.session import Device, open_session, refuse_missing, run_bound
from ipsrec_onnx.versions import how_to_install

Opened = TypeVar("Opened")


def open_cards(model: ModelFile, table: ItemTable, options: CardOptions, *, device: Device) -> EncodingCards | Cards:
    """Open a model on some GPUs.

    Args:
        model: the opened model file.
        table: the items that may be recommended.
        options: which GPUs, and what searches.
        device: "cuda"; "cpu" runs the very same on the CPU, for tests.

    Returns:
        Cards, or EncodingCards where the CPU is to search.

    Raises:
        ExecutionProviderError: a GPU or what the search needs is not there.
        ModelFileError: the graph cannot be used.
        OutOfMemoryError: a GPU's memory is too small.
    """
    refuse_missing(device)
    by_norm, embeddings = items_by_norm(table), model.item_embeddings
    search = choose_search(options.search, dim=model.dim, num_items=len(by_norm), gpus=options.gpus)
    session = _session_opener(model, device)
    if search == "triton":
        from ipsrec_gpu.card import TritonCard  # torch takes seconds to load

        _refuse_missing_gpus(options.gpus, device)
        run, place = functools.partial(run_bound, wait=device == "cpu"), "cpu" if device == "cpu" else "cuda:{}"

        def open_card(number: int) -> Card:
            return TritonCard(
                embeddings,
                by_norm,
                table.item_provider,
                device=place.format(number),
                open_session=functools.partial(session, number),
                run=run,
            )

        return Cards(model, {number: _opened(open_card, number) for number in options.gpus}, search=search)
    if search == "onnx":

        def open_onnx_card(number: int) -> Card:
            return OnnxCard(session(number), embeddings, table.allowed, device=device, card=number)

        return Cards(model, {number: _opened(open_onnx_card, number) for number in options.gpus}, search=search)

    return EncodingCards(model, _encoding_cards(model, options.gpus, device))


def open_sharded_cards(
    model: ModelFile, tables: Sequence[ItemTable], options: CardOptions, *, device: Device
) -> EncodingCards | ShardedCards:
    """Open a model whose catalog is cut into shards on some GPUs: the first one encodes, and all share the shards.

    Args:
        model: the opened model file.
        tables: the items that may be recommended, of each shard.
        options: which GPUs, and what searches.
        device: as for open_cards.

    Returns:
        ShardedCards, or EncodingCards where the CPU is to search; then all GPUs encode.

    Raises:
        ExecutionProviderError, ModelFileError, OutOfMemoryError: as open_cards.
    """
    refuse_missing(device)
    num_items = sum(len(items_by_norm(table)) for table in tables)
    search = choose_search(options.search, dim=model.dim, num_items=num_items, gpus=options.gpus)
    if search == "cpu":
        return EncodingCards(model, _encoding_cards(model, options.gpus, device))
    if search == "triton":
        _refuse_missing_gpus(options.gpus, device)
    searching = {}
    for at, number in enumerate(options.gpus):
        allowed = np.any([table.allowed for table in tables[at :: len(options.gpus)]], axis=0)
        if allowed.any():
            open_part = functools.partial(_open_search_card, model, allowed, search, device)
            searching[number] = _opened(open_part, number)
    return ShardedCards(model, _encoding_cards(model, options.gpus[:1], device), searching, search=search)


def _open_search_card(
    model: ModelFile, allowed: npt.NDArray[np.bool_], search: SearchName, device: Device, number: int
) -> SearchCard:
    """What one GPU has of the items: those that are allowed, (num_items + 1,) bool, one or more."""
    if search == "onnx":
        return OnnxSearchCard(model.item_embeddings, allowed, device=device, card=number)
    from ipsrec_gpu.card import TritonSearchCard  # torch takes seconds to load

    items = np.flatnonzero(allowed).astype(np.int32)
    norms = np.zeros(len(items), np.float64)
    embeddings = model.item_embeddings[items]
    row_norms(embeddings, norms)
    order = np.argsort(-norms, kind="stable")
    item_provider = model.catalog.item_provider
    return TritonSearchCard(
        embeddings[order],
        items[order],
        item_provider[items[order]],
        num_providers=int(item_provider.max()),
        device="cpu" if device == "cpu" else f"cuda:{number}",
    )


def _session_opener(model: ModelFile, device: Device) -> Callable[..., InferenceSession]:
    """Opens a session of the graph with item_embeddings as an input: (number of the GPU, handle of a stream)."""
    if model.precision == "int8":
        raise ModelFileError(
            f"model {model.path}: GPUs take float32 or float16 weights, found int8; export it with --precision fp32 or "
            "fp16, or score without --device cuda"
        )
    graph = graph_with_table_input(model.path, (len(model.item_embeddings), model.dim))

    def session(number: int, stream: int | None = None) -> InferenceSession:
        return open_session(model.path, device=device, graph=graph, card=number, stream=stream)

    return session


def _encoding_cards(model: ModelFile, gpus: Sequence[int], device: Device) -> dict[int, EncodingCard]:
    """GPUs that encode alone, by number."""
    session = _session_opener(model, device)

    def open_encoding_card(number: int) -> EncodingCard:
        return OnnxEncodingCard(session(number), model.item_embeddings, device=device, card=number)

    return {number: _opened(open_encoding_card, number) for number in gpus}


def kind_of_gpus(gpus: Sequence[int]) -> str:
    """Name of the kind of GPU that all of these are: which one has a user must not decide about the user's last bits.

    Of a GPU that is not there, whoever opens it says so.

    Raises:
        ExecutionProviderError: they are of several kinds.
    """
    names = gpu_names()
    found = {number: names[number] for number in gpus if number < len(names)}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{number} is {name}" for number, name in found.items())
        raise ExecutionProviderError(
            f"--gpus: {said}; unlike GPUs round user vectors in ways of their own, so take those of one kind"
        )
    return next(iter(found.values()), "unknown")


def _opened(open_one: Callable[[int], Opened], number: int) -> Opened:
    """Open a GPU's card; where its memory is too small, say of which."""
    with memory_of_gpu(number):
        opened = open_one(number)
    return opened


def _refuse_missing_gpus(gpus: Sequence[int], device: Device) -> None:
    """Refuse numbers that torch has no GPU for; ONNX Runtime says so by itself."""
    from ipsrec_gpu.available import num_gpus

    there = num_gpus()
    if device == "cuda" and max(gpus) >= there:
        raise ExecutionProviderError(
            f"--gpus: there is no GPU {max(gpus)}, torch finds {there}, numbered from 0; check CUDA_VISIBLE_DEVICES"
        )


def choose_search(search: SearchName, *, dim: int, num_items: int, gpus: Sequence[int]) -> SearchName:
    """What searches, by what is asked for, the model and what is installed.

    Raises:
        ExecutionProviderError: "triton" is asked for and cannot be had.
    """
    if search == "cpu" or num_items == 0:  # nothing may be recommended: there is nothing to search
        return "cpu"
    if search == "onnx":
        return "onnx"
    missing = why_no_triton(dim, gpus)
    if missing is None:
        return "triton"
    if search == "triton":
        raise ExecutionProviderError(
            f"--search triton: {missing}; use --search onnx, or mend it with: {how_to_install('triton')}"
        )
    return "onnx"


def why_no_triton(dim: int, gpus: Sequence[int] = (0,)) -> str | None:
    """Why the search with Triton cannot run on a model of this dim; None where it can."""
    for package in ("torch", "triton"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    from ipsrec_gpu.available import why_unavailable

    return why_unavailable(dim, gpus)
