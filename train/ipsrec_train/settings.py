"""Settings of a model, frozen, and what each variant sets.

The variants are those of the paper's notes: `paper` is the paper as read, `released` the authors' code, and
`recommended` adds what measurably helps: the provider in every item's representation and the history terms.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from ipsrec_onnx.errors import DataError

Variant = Literal["recommended", "paper", "released"]
VARIANTS: tuple[Variant, ...] = ("recommended", "paper", "released")


@dataclass(frozen=True)
class IPSRecSettings:
    """Settings of IPSRec-S and IPSRec-C (paper section 3.3; where it is silent, the authors' released code).

    Attributes:
        variant: which reading of the architecture; see the model's docstring.
        max_len: most recent items that the model sees.
        dim: width of item, provider and user embeddings.
        num_layers: Transformer layers (of each stream in IPSRec-C).
        num_heads: attention heads.
        inner_dim: width of the feed-forward.
        dropout: for embeddings, attention and hidden states.
        layer_norm_eps: as in the released code.
        initializer_std: standard deviation of all initial weights.
        contrastive_weight: lambda of Eq. 13; 0 leaves the contrastive loss out.
        temperature: tau of Eq. 12.
        co_attention: IPSRec-C only, what the streams exchange: "queries" as the released code, or "keys_values".
        provider_in_item: an item is e_i + p_provider(i) in the input and in the score.
        history_terms: learned weights by age for items and providers met before, added to the score.
    """

    variant: Variant = "recommended"
    max_len: int = 50
    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    inner_dim: int = 256
    dropout: float = 0.5
    layer_norm_eps: float = 1e-12
    initializer_std: float = 0.02
    contrastive_weight: float = 0.0
    temperature: float = 1.0
    co_attention: Literal["queries", "keys_values"] = "queries"
    provider_in_item: bool = True
    history_terms: bool = True

    def __post_init__(self) -> None:
        wrong = [name for name in ("max_len", "dim", "num_layers", "num_heads", "inner_dim") if getattr(self, name) < 1]
        if wrong:
            raise DataError(f"settings: {wrong[0]} is {getattr(self, wrong[0])}, expected 1 or more")
        if self.dim % self.num_heads:
            raise DataError(f"settings: dim {self.dim} does not split into {self.num_heads} heads; change one of them")
        if not 0 <= self.dropout < 1:
            raise DataError(f"settings: dropout is {self.dropout}, expected 0 <= dropout < 1")
        refuse_unless_positive(self, "initializer_std", "layer_norm_eps", "temperature")
        if not 0 <= self.contrastive_weight < math.inf:
            raise DataError(f"settings: contrastive_weight is {self.contrastive_weight}, expected 0 or more")
        if self.variant not in VARIANTS:
            raise DataError(f"settings: variant {self.variant!r}, expected one of {', '.join(VARIANTS)}")
        if self.co_attention not in ("queries", "keys_values"):
            raise DataError(f"settings: co_attention {self.co_attention!r}, expected queries or keys_values")


def refuse_unless_positive(settings: object, *names: str) -> None:
    """Refuse settings of these names that are not finite numbers above 0."""
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise DataError(f"settings: {name} is {getattr(settings, name)}, expected a finite number above 0")


VARIANT_DEFAULTS: dict[Variant, dict[str, Any]] = {
    "recommended": {"contrastive_weight": 0.0, "provider_in_item": True, "history_terms": True},
    "paper": {"contrastive_weight": 0.1, "provider_in_item": False, "history_terms": False},
    "released": {"contrastive_weight": 0.1, "provider_in_item": False, "history_terms": False},
}


def settings_for(variant: Variant, changes: dict[str, Any]) -> IPSRecSettings:
    """Take a variant's settings and change some.

    Args:
        variant: whose defaults to start from.
        changes: names and values that differ; None values are left out.

    Raises:
        DataError: an unknown name, or a value that makes no sense.
    """
    known = {field.name for field in dataclasses.fields(IPSRecSettings)} - {"variant"}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise DataError(f"settings: unknown name {unknown[0]!r}, expected one of {', '.join(sorted(known))}")
    chosen = {**VARIANT_DEFAULTS[variant], **{name: value for name, value in changes.items() if value is not None}}
    return IPSRecSettings(**{**chosen, "variant": variant})
