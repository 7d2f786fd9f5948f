"""transformers' `EncodecModel` <-> our codec: EnCodec 24, 32 (MusicGen) and 48 kHz.

Their encoder and decoder are numbered lists with the activations in them, as ours are named ones,
so layer i is layer i.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mgen.codec.blocks import ResidualUnit, decoder_layers, encoder_layers
from mgen.codec.config import CodecConfig
from mgen.errors import UserError
from mgen.interop.layers import Slot, read_layers, write_layers
from mgen.interop.torch_weights import Reader, StateDict
from mgen.nn.recurrent import ResidualLSTM
from mgen.typing import Params

NORMS = {"weight_norm": "weight", "time_group_norm": "time_group"}


def config(released: Mapping[str, Any]) -> CodecConfig:
    """`CodecConfig` of a released config.json (or `EncodecConfig.to_dict()`). Raises `UserError`
    for what has no counterpart.
    """
    r = released
    if r["trim_right_ratio"] != 1.0:
        raise UserError(
            f"EnCodec config: trim_right_ratio is {r['trim_right_ratio']}, expected 1.0"
        )
    if r["codebook_dim"] not in (None, r["hidden_size"]):
        raise UserError(
            f"EnCodec config: codebook_dim is {r['codebook_dim']}, expected hidden_size"
        )
    if r["norm_type"] not in NORMS:
        raise UserError(f"EnCodec config: norm_type is {r['norm_type']!r}, expected {list(NORMS)}")
    strides = tuple(reversed(r["upsampling_ratios"]))
    frame_rate = math.ceil(r["sampling_rate"] / math.prod(strides))
    bits = math.ceil(math.log2(r["codebook_size"]))
    growth = r["dilation_growth_rate"]
    return CodecConfig(
        sample_rate=r["sampling_rate"],
        channels=r["audio_channels"],
        normalize=r["normalize"],
        segment_seconds=float(r["chunk_length_s"] or 0.0),
        segment_overlap=float(r["overlap"] or 0.0),
        align_input=False,
        filters=r["num_filters"],
        strides=strides,
        kernel_in=r["kernel_size"],
        encoder_kernel_out=r["last_kernel_size"],
        decoder_kernel_out=r["last_kernel_size"],
        residual_kernel=r["residual_kernel_size"],
        dilations=tuple(growth**j for j in range(r["num_residual_layers"])),
        compress=r["compress"],
        conv_shortcut=r["use_conv_shortcut"],
        lstm_layers=r["num_lstm_layers"],
        causal=r["use_causal_conv"],
        pad_mode=r["pad_mode"],
        norm=NORMS[r["norm_type"]],
        latent_dim=r["hidden_size"],
        num_codebooks=int(1000 * r["target_bandwidths"][-1] // (frame_rate * bits)),
        codebook_size=r["codebook_size"],
    )


def from_torch(config: CodecConfig, state: StateDict) -> dict[str, Params]:
    """Variables {"params", "codebook"} from a state dict. Raises `UserError` naming the tensor that
    is amiss.
    """
    reader = Reader(state)
    params = read_layers(reader, _slots(config))
    books: dict[str, list[Any]] = {"embed": [], "embed_avg": [], "cluster_size": []}
    for k in range(config.num_codebooks):
        for field, tensors in books.items():
            width = () if field == "cluster_size" else (config.latent_dim,)
            name = f"quantizer.layers.{k}.codebook.{field}"
            tensors.append(reader.take(name, (config.codebook_size, *width)))
    reader.finish(ignore=(".inited",))
    stacked = {field: jnp.asarray(np.stack(tensors)) for field, tensors in books.items()}
    codebook = {
        "embedding": stacked["embed"],
        "embedding_sum": stacked["embed_avg"],
        "cluster_size": stacked["cluster_size"],
        "initialized": jnp.ones((), jnp.bool_),
    }
    return {"params": params, "codebook": {"quantizer": codebook}}


def to_torch(config: CodecConfig, variables: dict[str, Params]) -> StateDict:
    """The state dict that `from_torch` reads; `EncodecModel.load_state_dict` takes it with
    `strict=True`.
    """
    state = write_layers(_slots(config), variables["params"])
    book = variables["codebook"]["quantizer"]
    for k in range(config.num_codebooks):
        prefix = f"quantizer.layers.{k}.codebook"
        state[f"{prefix}.inited"] = np.ones(1, np.float32)
        state[f"{prefix}.embed"] = np.asarray(book["embedding"][k])
        state[f"{prefix}.embed_avg"] = np.asarray(book["embedding_sum"][k])
        state[f"{prefix}.cluster_size"] = np.asarray(book["cluster_size"][k])
    return state


def _slots(config: CodecConfig) -> Iterator[Slot]:
    for half, build in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        for i, (ours, layer) in enumerate(build(config)):
            name = f"{half}.layers.{i}"
            if isinstance(layer, ResidualUnit):
                branch = ResidualUnit.branch(layer.config, layer.features, layer.dilation)
                for j, (part, conv) in enumerate(branch):
                    yield Slot((half, ours, part), f"{name}.block.{j}.conv", conv)
                if config.conv_shortcut:
                    skip = ResidualUnit.skip(layer.config, layer.features)
                    yield Slot((half, ours, "shortcut"), f"{name}.shortcut.conv", skip)
            elif isinstance(layer, ResidualLSTM):
                yield Slot((half, ours), f"{name}.lstm", layer)
            else:
                yield Slot((half, ours), f"{name}.conv", layer)
