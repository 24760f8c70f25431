"""An encoder of our own for the attention models: the weights of the same model file, kernels that pad nothing.

ONNX Runtime stays the reference: `fused_difference` says how far the two are apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.check import check_array, check_offsets
from ipsrec_kernels.dense import padded
from ipsrec_kernels.encoder import encode_histories
from ipsrec_kernels.encoder_arrays import Layers, Norm, StreamInput
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.fused_program import Program, make_program
from ipsrec_onnx.fused_weights import lengthened, pack_layers
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.metadata_texts import PREFIX
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.onnx_weights import read_weights

Float32Array = npt.NDArray[np.float32]

MODELS: Final = ("ipsrec-c", "ipsrec-s", "sasrec")
_PROVIDER_TABLE: Final = "provider_embeddings"  # an initializer's name, as the graph of export has it


@dataclass(frozen=True, eq=False)
class FusedEncoder:
    """A model's encoder, ready for the kernels; shared by threads.

    Attributes:
        model: the opened file.
        item_input: what item tokens start from.
        provider_input: what provider tokens start from; its place is empty for a model of one stream.
        layers: packed weights, numbered as the program does.
        program: what looks at what.
        norm: what all LayerNorms share.
    """

    model: ModelFile
    item_input: StreamInput
    provider_input: StreamInput
    layers: Layers
    program: Program
    norm: Norm


def open_fused_encoder(model: ModelFile) -> FusedEncoder:
    """Read a model's weights.

    Raises:
        ModelFileError: the model is another one, or its file does not say where its weights are (as files of older
            versions), or they do not fit its settings.
    """
    if model.model not in MODELS:
        raise ModelFileError(
            f"model {model.path}: the fused encoder has {', '.join(MODELS)}, found {model.model}; "
            "encode with ONNX Runtime, which is the default"
        )
    if model.precision != "fp32":
        raise ModelFileError(
            f"model {model.path}: the fused encoder takes float32 weights, found {model.precision}; export it again "
            "with --precision fp32, or encode with ONNX Runtime, which is the default"
        )
    names = _weight_names(model)
    try:
        return _open(model, names)
    except (KeyError, TypeError, ValueError) as error:
        named = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelFileError(
            f"model {model.path}: its weights are not what the fused encoder expects: {named}; export it again, or "
            "encode with ONNX Runtime, which is the default"
        ) from error


def encode_fused(encoder: FusedEncoder, histories: Histories) -> Float32Array:
    """Compute the user embedding of each history; the same bits for a user whoever else is there.

    Args:
        encoder: as open_fused_encoder gave it.
        histories: (n histories) none of them empty, none longer than max_len.

    Returns:
        (n, dim) float32.

    Raises:
        ValueError: a history is empty or too long, or an index is outside its table.
        ModelFileError: an embedding has NaN or infinity.
    """
    model = encoder.model
    _check(encoder, histories)
    user_embedding = np.empty((len(histories.offsets) - 1, model.dim), np.float32)
    encode_histories(
        check_array("items", histories.items, dtype=np.int32),
        check_array("providers", histories.providers, dtype=np.int32),
        check_offsets("offsets", histories.offsets, num_values=len(histories.items)),
        encoder.item_input,
        encoder.provider_input,
        encoder.program.step,
        encoder.layers,
        encoder.program.steps,
        encoder.program.num_slots,
        encoder.norm,
        user_embedding,
    )
    if not np.isfinite(user_embedding).all():
        raise ModelFileError(f"model {model.path}: a user_embedding has NaN or infinity; train or export again")
    return user_embedding


def fused_difference(
    encoder: FusedEncoder, histories: Histories, encode: Callable[[ModelFile, Histories], Float32Array]
) -> float:
    """Say how far the fused encoder is from another encoder of the same file: the largest absolute difference.

    Args:
        encoder: as open_fused_encoder gave it.
        histories: as encode_fused takes them.
        encode: gives (n, dim) float32, as `ipsrec_onnx.encoding.encode` does with ONNX Runtime.

    Returns:
        0.0 where there are no histories.
    """
    apart = np.abs(encode_fused(encoder, histories) - encode(encoder.model, histories))
    return float(apart.max(initial=0.0))


def _weight_names(model: ModelFile) -> dict[str, str]:
    text = model.session.get_modelmeta().custom_metadata_map.get(PREFIX + "weights")
    if text is None:
        raise ModelFileError(
            f"model {model.path}: it was exported by an older version and does not say which weights are which; "
            "export it again, or encode with ONNX Runtime, which is the default"
        )
    names = json.loads(text)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelFileError(f"model {model.path}: {PREFIX}weights is no map of names; export it again")
    return names


def _open(model: ModelFile, names: Mapping[str, str]) -> FusedEncoder:
    settings = model.settings
    _check_settings(model, num_weights=len(names))
    program = make_program(model.model, settings)
    arrays = read_weights(model.path, {*names.values(), _PROVIDER_TABLE} if program.two_streams else {*names.values()})
    weights = {name: arrays[held] for name, held in names.items()}
    widths = {len(weight) for name, weight in weights.items() if name.endswith(".inner.bias")}
    if widths != {settings["inner_dim"]}:
        raise ValueError(f"inner_dim is {settings['inner_dim']!r}, the weights have {sorted(widths)}")
    item_input = _stream_input(weights, model, model.item_embeddings, stream="item_input", norm=program.norms[0])
    if program.two_streams:
        table = arrays[_PROVIDER_TABLE]
        if len(table) != model.catalog.num_providers + 1:
            raise ValueError(f"{len(table)} provider embeddings, expected {model.catalog.num_providers + 1}")
        provider_input = _stream_input(weights, model, table, stream="provider_input", norm=program.norms[1])
    else:
        provider_input = item_input._replace(place=np.zeros((0, model.dim), np.float32))
    layers = pack_layers(
        weights,
        program.layers,
        parts=program.parts,
        dim=model.dim,
        num_heads=settings["num_heads"],
        inner_dim=settings["inner_dim"],
    )
    norm = Norm(model.dim, np.float32(settings["layer_norm_eps"]))
    return FusedEncoder(model, item_input, provider_input, layers, program, norm)


def _check_settings(model: ModelFile, *, num_weights: int) -> None:
    """Refuse what the program and the packing would count to, or divide by, before the weights are looked at."""
    settings = model.settings
    for name, most in (("num_layers", num_weights), ("num_heads", model.dim)):
        value = settings[name]
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}, expected a whole number, 1..{most}")
    if model.dim % settings["num_heads"]:
        raise ValueError(f"num_heads is {settings['num_heads']}, by which dim {model.dim} cannot be divided")
    eps = settings["layer_norm_eps"]
    if not isinstance(eps, int | float) or not 0 < eps < 1:
        raise ValueError(f"layer_norm_eps is {eps!r}, expected a number between 0 and 1")


def _stream_input(
    weights: Mapping[str, Float32Array], model: ModelFile, table: Float32Array, *, stream: str, norm: str
) -> StreamInput:
    place = weights[f"{stream}.position"]
    if f"{stream}.segment" in weights:
        place = place + weights[f"{stream}.segment"]
    scale, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
    found = (table.shape[1:], place.shape, scale.shape, shift.shape)
    expected = ((model.dim,), (model.max_len, model.dim), (model.dim,), (model.dim,))
    if found != expected:
        raise ValueError(f"{stream} has shapes {found}, expected {expected}")
    states = padded(model.dim)
    return StreamInput(table, place, lengthened(scale, states), lengthened(shift, states))


def _check(encoder: FusedEncoder, histories: Histories) -> None:
    lengths = histories.lengths
    if lengths.size and (lengths.min() < 1 or lengths.max() > encoder.model.max_len):
        raise ValueError(
            f"histories have {lengths.min()}..{lengths.max()} items, expected 1..{encoder.model.max_len}; "
            "take the newest and leave out the empty ones first"
        )
    for name, indices, table in (
        ("items", histories.items, encoder.item_input.table),
        ("providers", histories.providers, encoder.provider_input.table),
    ):
        if len(indices) != len(histories.items):
            raise ValueError(f"histories have {len(histories.items)} items, but {len(indices)} {name}")
        looked_at = name == "items" or len(encoder.provider_input.place) > 0
        if looked_at and indices.size and (indices.min() < 0 or indices.max() >= len(table)):
            raise ValueError(f"histories.{name} are {indices.min()}..{indices.max()}, expected 0..{len(table) - 1}")
