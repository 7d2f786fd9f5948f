"""diffusers' `AutoencoderOobleck` <-> our codec: the VAE of Stable Audio (44.1 kHz stereo)."""

from collections.abc import Mapping
from typing import Any

from mgen.codec.config import CodecConfig
from mgen.errors import UserError
from mgen.interop.layers import block_slots, read_layers, write_layers
from mgen.interop.torch_weights import Reader, StateDict
from mgen.typing import Params


def config(released: Mapping[str, Any], norm: str = "weight") -> CodecConfig:
    """`CodecConfig` of a released config.json (or `AutoencoderOobleck.config`). Raises `UserError`
    where the widths disagree.
    """
    r = released
    if r["encoder_hidden_size"] != 2 * r["decoder_input_channels"]:
        raise UserError(
            f"Oobleck config: encoder_hidden_size is {r['encoder_hidden_size']}, expected twice "
            f"decoder_input_channels ({r['decoder_input_channels']}): mean and scale"
        )
    return CodecConfig(
        sample_rate=r["sampling_rate"],
        channels=r["audio_channels"],
        filters=r["encoder_hidden_size"],
        decoder_filters=r["decoder_channels"],
        strides=tuple(r["downsampling_ratios"]),
        multipliers=tuple(r["channel_multiples"]),
        encoder_kernel_out=3,
        residual_kernel=7,
        dilations=(1, 3, 9),
        compress=1,
        activation="snake_beta",
        norm=norm,
        output_padding=False,
        decoder_out_bias=False,
        bottleneck="vae",
        latent_dim=r["decoder_input_channels"],
    )


def from_torch(config: CodecConfig, state: StateDict) -> dict[str, Params]:
    """Variables {"params"} from a state dict; `UserError` names the tensor that is amiss."""
    reader = Reader(state)
    params = read_layers(reader, block_slots(config))
    reader.finish()
    return {"params": params}


def to_torch(
    config: CodecConfig, variables: dict[str, Params], naming: str = "legacy"
) -> StateDict:
    """The state dict that `from_torch` reads; diffusers keeps weight norm in the legacy naming."""
    return write_layers(block_slots(config), variables["params"], naming)
