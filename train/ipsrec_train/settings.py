"""Settings of the models, frozen, one dataclass a model, and what each variant of IPSRec sets.

The variants are those of the paper's notes: `paper` is the paper as read, `released` the authors' code, and
`recommended` adds what measurably helps: the provider in every item's representation and the history terms.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from ipsrec_onnx.errors import DataError

Variant = Literal["recommended", "paper", "released"]
VARIANTS: Final[tuple[Variant, ...]] = ("recommended", "paper", "released")
TERMS: Final = ("none", "seen", "all")


class Contrastive(NamedTuple):
    """The contrastive part of a loss.

    Attributes:
        weight: lambda of Eq. 13, above 0.
        temperature: tau of Eq. 12.
        symmetric: both streams are anchors, as in the released code.
    """

    weight: float
    temperature: float
    symmetric: bool


@dataclass(frozen=True)
class ModelSettings:
    """What every model has.

    Attributes:
        max_len: most recent items that the model sees.
        dim: width of item, provider and user embeddings.
        dropout: see the model.
        initializer_std: standard deviation of the initial embeddings; in the attention models, of all weights.
        provider_in_item: an item is e_i + p_provider(i) in the input and in the score.
        history_terms: learned weights by age, added to the score: "seen" for items met before, "all" for these and
            for items of providers met before, or "none".
    """

    max_len: int = 50
    dim: int = 64
    dropout: float = 0.5
    initializer_std: float = 0.02
    provider_in_item: bool = False
    history_terms: Literal["none", "seen", "all"] = "none"

    def __post_init__(self) -> None:
        _refuse_below_one(self, "max_len", "dim")
        if not 0 <= self.dropout < 1:
            raise DataError(f"settings: dropout is {self.dropout}, expected 0 <= dropout < 1")
        refuse_unless_positive(self, "initializer_std")
        _refuse_unless_one_of("history_terms", self.history_terms, TERMS)

    @property
    def contrastive(self) -> Contrastive | None:
        """The contrastive part of the loss; None for a model without."""
        return None


@dataclass(frozen=True)
class AttentionSettings(ModelSettings):
    """What the models made of Transformer layers have.

    Attributes:
        num_layers: Transformer layers (of each stream in IPSRec-C).
        num_heads: attention heads.
        inner_dim: width of the feed-forward.
        layer_norm_eps: as in RecBole and in the released code of IPSRec.
    """

    num_layers: int = 2
    num_heads: int = 2
    inner_dim: int = 256
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_below_one(self, "num_layers", "num_heads", "inner_dim")
        if self.dim % self.num_heads:
            raise DataError(f"settings: dim {self.dim} does not split into {self.num_heads} heads; change one of them")
        refuse_unless_positive(self, "layer_norm_eps")


@dataclass(frozen=True)
class SASRecSettings(AttentionSettings):
    """Settings of SASRec; dropout is for embeddings, attention and hidden states."""


@dataclass(frozen=True)
class IPSRecSettings(AttentionSettings):
    """Settings of IPSRec-S and IPSRec-C (paper section 3.3; where it is silent, the authors' released code).

    Dropout is for embeddings, attention and hidden states.

    Attributes:
        provider_in_item: as everywhere, but on unless a variant says otherwise.
        history_terms: likewise.
        variant: which reading of the architecture; see the model's docstring.
        contrastive_weight: lambda of Eq. 13; 0 leaves the contrastive loss out.
        temperature: tau of Eq. 12.
        co_attention: IPSRec-C only, what the streams exchange: "queries" as the released code, or "keys_values".
    """

    provider_in_item: bool = True
    history_terms: Literal["none", "seen", "all"] = "all"
    variant: Variant = "recommended"
    contrastive_weight: float = 0.0
    temperature: float = 1.0
    co_attention: Literal["queries", "keys_values"] = "queries"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless_positive(self, "temperature")
        if not 0 <= self.contrastive_weight < math.inf:
            raise DataError(f"settings: contrastive_weight is {self.contrastive_weight}, expected 0 or more")
        _refuse_unless_one_of("variant", self.variant, VARIANTS)
        _refuse_unless_one_of("co_attention", self.co_attention, ("queries", "keys_values"))

    @property
    def contrastive(self) -> Contrastive | None:
        """The contrastive part of the loss; None where its weight is 0."""
        if not self.contrastive_weight:
            return None
        return Contrastive(self.contrastive_weight, self.temperature, symmetric=self.variant == "released")


@dataclass(frozen=True)
class GRU4RecSettings(ModelSettings):
    """Settings of GRU4Rec; dropout is for embeddings.

    Attributes:
        initializer_std: RecBole 1.0.0 has sqrt(2 / (items + dim)) instead: .013 for 12,000 items.
        hidden_dim: width of the recurrent state.
        num_layers: recurrent layers.
    """

    dropout: float = 0.3
    initializer_std: float = 0.01
    hidden_dim: int = 128
    num_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_below_one(self, "hidden_dim", "num_layers")


@dataclass(frozen=True)
class CaserSettings(ModelSettings):
    """Settings of Caser; dropout is for what the filters give.

    Attributes:
        initializer_std: 1 / 64, the 1 / dim of RecBole 1.0.0.
        window: how many of the newest items the filters see; max_len where that is less.
        horizontal_filters: of each height.
        vertical_filters: weighted sums over the window.
    """

    dropout: float = 0.4
    initializer_std: float = 1 / 64
    window: int = 10
    horizontal_filters: int = 16
    vertical_filters: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_below_one(self, "window", "horizontal_filters", "vertical_filters")


@dataclass(frozen=True)
class SRGNNSettings(ModelSettings):
    """Settings of SR-GNN; dropout is for embeddings, and RecBole 1.0.0 has none.

    Attributes:
        initializer_std: of the uniform numbers within 1 / sqrt(64) that RecBole 1.0.0 draws.
        steps: rounds of messages along the edges.
    """

    dropout: float = 0.0
    initializer_std: float = 0.072
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_below_one(self, "steps")


MODEL_SETTINGS: Final[dict[str, type[ModelSettings]]] = {
    "ipsrec-c": IPSRecSettings,
    "ipsrec-s": IPSRecSettings,
    "sasrec": SASRecSettings,
    "gru4rec": GRU4RecSettings,
    "caser": CaserSettings,
    "sr-gnn": SRGNNSettings,
}

VARIANT_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "recommended": {"contrastive_weight": 0.0, "provider_in_item": True, "history_terms": "all"},
    "paper": {"contrastive_weight": 0.1, "provider_in_item": False, "history_terms": "none"},
    "released": {"contrastive_weight": 0.1, "provider_in_item": False, "history_terms": "none"},
}


def settings_for(model: str, variant: str | None, changes: dict[str, Any]) -> ModelSettings:
    """Take a model's settings and change some.

    Args:
        model: name of the model, a key of MODEL_SETTINGS.
        variant: of an IPSRec, whose defaults to start from; None takes the recommended one. None for other models.
        changes: names and values that differ; None values are left out.

    Returns:
        Settings of the model's own type.

    Raises:
        DataError: an unknown model, a setting or variant that it does not have, or a value that makes no sense.
    """
    kind = settings_type(model)
    known = {field.name for field in dataclasses.fields(kind)} - {"variant"}
    chosen = {name: value for name, value in changes.items() if value is not None}
    unknown = sorted(set(chosen) - known)
    if unknown:
        raise DataError(f"settings: {model} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    if not issubclass(kind, IPSRecSettings):
        if variant is not None:
            raise DataError(f"settings: {model} has no variants, found {variant!r}; leave the variant out")
        return kind(**chosen)
    start = "recommended" if variant is None else variant
    _refuse_unless_one_of("variant", start, VARIANTS)
    return kind(**{**VARIANT_DEFAULTS[start], **chosen, "variant": start})


def settings_type(model: str) -> type[ModelSettings]:
    """Say which settings a model has.

    Raises:
        DataError: an unknown model.
    """
    if model not in MODEL_SETTINGS:
        raise DataError(f"model {model!r} is not known, expected one of {', '.join(MODEL_SETTINGS)}")
    return MODEL_SETTINGS[model]


def refuse_other_types(holder: type[Any], values: dict[str, Any], *, where: Path | str) -> None:
    """Refuse a value that has another type than its default; a whole number may stand where a fraction may.

    Args:
        holder: dataclass of settings, each with a default.
        values: by name, as read from TOML or JSON.
        where: they were read, for messages.
    """
    for field in dataclasses.fields(holder):
        wanted, value = type(field.default), values.get(field.name, field.default)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise DataError(
                f"{where}: a value is of the wrong type: {field.name} is {value!r}, expected {wanted.__name__}"
            )


def refuse_unless_positive(settings: object, *names: str) -> None:
    """Refuse settings of these names that are not finite numbers above 0."""
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise DataError(f"settings: {name} is {getattr(settings, name)}, expected a finite number above 0")


def _refuse_below_one(settings: object, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise DataError(f"settings: {name} is {getattr(settings, name)}, expected 1 or more")


def _refuse_unless_one_of(name: str, value: object, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise DataError(f"settings: {name} {value!r}, expected one of {', '.join(expected)}")
