"""transformers' `DacModel` <-> our codec: Descript Audio Codec 16, 24 and 44.1 kHz.

Released weights have weight norm folded into the kernels; with `norm="weight"` they become
directions and gains to train on.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mgen.codec.config import CodecConfig
from mgen.interop.layers import block_slots, read_layers, write_layers
from mgen.interop.torch_weights import Reader, StateDict, conv_to_torch
from mgen.typing import Params


def config(released: Mapping[str, Any], norm: str = "none") -> CodecConfig:
    """`CodecConfig` of a released config.json (or `DacConfig.to_dict()`); `norm` "weight" to train
    on.
    """
    r = released
    strides = tuple(r["downsampling_ratios"])
    width = 2 ** len(strides)
    return CodecConfig(
        sample_rate=r["sampling_rate"],
        filters=r["encoder_hidden_size"],
        decoder_filters=r["decoder_hidden_size"] // width,
        strides=strides,
        encoder_kernel_out=3,
        residual_kernel=7,
        dilations=(1, 3, 9),
        compress=1,
        activation="snake",
        final_activation="tanh",
        norm=norm,
        output_padding=False,
        bottleneck="factorized_rvq",
        latent_dim=r["encoder_hidden_size"] * width,
        num_codebooks=r["n_codebooks"],
        codebook_size=r["codebook_size"],
        codebook_dim=r["codebook_dim"],
        quantizer_dropout=float(r["quantizer_dropout"]),
    )


def from_torch(config: CodecConfig, state: StateDict) -> dict[str, Params]:
    """Variables {"params"} from a state dict; `UserError` names the tensor that is amiss."""
    reader = Reader(state)
    params = read_layers(reader, block_slots(config))
    levels = []
    for k in range(config.num_codebooks):
        name = f"quantizer.quantizers.{k}"
        ends = (
            ("in", config.latent_dim, config.codebook_dim),
            ("out", config.codebook_dim, config.latent_dim),
        )
        level = {
            "codebook": reader.take(
                f"{name}.codebook.weight", (config.codebook_size, config.codebook_dim)
            )
        }
        for side, inputs, outputs in ends:
            conv = reader.conv(f"{name}.{side}_proj", 1, inputs, outputs, norm=config.norm)
            conv["kernel"] = conv["kernel"][0]
            level |= {f"{side}_{key}": value for key, value in conv.items()}
        levels.append(level)
    reader.finish()
    params["quantizer"] = {
        key: jnp.asarray(np.stack([level[key] for level in levels])) for key in levels[0]
    }
    return {"params": params}


def to_torch(
    config: CodecConfig, variables: dict[str, Params], naming: str = "parametrized"
) -> StateDict:
    """The state dict that `from_torch` reads; with `norm="none"` as released, else with weight norm
    in the given naming.
    """
    state = write_layers(block_slots(config), variables["params"], naming)
    stacked = variables["params"]["quantizer"]
    for k in range(config.num_codebooks):
        name = f"quantizer.quantizers.{k}"
        state[f"{name}.codebook.weight"] = np.asarray(stacked["codebook"][k])
        for side in ("in", "out"):
            conv = {
                key.removeprefix(f"{side}_"): np.asarray(value[k])
                for key, value in stacked.items()
                if key.startswith(f"{side}_")
            }
            conv["kernel"] = conv["kernel"][None]
            state |= conv_to_torch(f"{name}.{side}_proj", conv, naming)
    return {name: np.ascontiguousarray(tensor) for name, tensor in state.items()}
