"""audio-diffusion-pytorch 0.0.43 `UNet1d` -> our U-Net over stems: MSDM and its one-stem models."""

import itertools
from collections.abc import Mapping
from typing import Any

from mgen.errors import UserError
from mgen.interop.torch_weights import Reader, StateDict
from mgen.interop.transformer_weights import dense, finish, heads_in, heads_out
from mgen.stems.config import UNetConfig
from mgen.stems.unet import mean_of_tracks
from mgen.typing import Params, ndarray

# Settings that our network has no other value of.
FIXED: dict[str, Any] = dict(
    patch_blocks=1,
    kernel_multiplier_downsample=2,
    use_nearest_upsample=False,
    use_skip_scale=True,
    use_attention_bottleneck=True,
    use_context_time=True,
    out_channels=None,
    context_features=None,
    context_channels=None,
    context_embedding_features=None,
)
# Ours -> theirs.
FIELDS = dict(
    width="channels",
    patch="patch_factor",
    multipliers="multipliers",
    factors="factors",
    blocks="num_blocks",
    attentions="attentions",
    heads="attention_heads",
    head_dim="attention_features",
    ff_multiplier="attention_multiplier",
    groups="resnet_groups",
)


def config(released: Mapping[str, Any], **overrides: Any) -> UNetConfig:
    """`UNetConfig` of the arguments of `UNet1d` (MSDM has them in the `model` part of its
    experiment files, among others).

    Args:
      released: the arguments.
      overrides: further fields of `UNetConfig` (per_track, dtype); `stems` and `channels` where the
        input channels are not mono stems.

    Raises:
      UserError: settings that have no counterpart.
    """
    for field, wanted in FIXED.items():
        if released.get(field, wanted) != wanted:
            raise UserError(f"UNet1d: {field} is {released[field]}, expected {wanted}")
    fields = {ours: released[theirs] for ours, theirs in FIELDS.items()}
    return UNetConfig.from_config({"stems": released["in_channels"], **fields}, **overrides)


def from_torch(config: UNetConfig, state: StateDict, prefix: str = "") -> dict[str, Params]:
    """Variables {"params"} of `mgen.stems.unet.UNet1d` from a state dict.

    With `per_track` the released network is what ours is where all levels are equal.

    Args:
      config: from `config`.
      state: the state dict as numpy arrays.
      prefix: of the network's names, "model.unet." in MSDM's checkpoints; the others are left out.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    own = {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}
    reader, widths = Reader(own), config.widths
    sources, patch = config.stems * config.channels, config.width // config.patch
    last, condition = widths[-1], config.condition_width

    def block(name: str, inputs: int, outputs: int) -> Params:
        return _residual_block(reader, name, inputs, outputs, condition)

    params: Params = {
        "noise": _noise(reader, config),
        "patch": block("to_in.module_list.0.block", sources, patch),
        "bottleneck_block_0": block("bottleneck.pre_block", last, last),
        "bottleneck_attention": _self_attention(reader, "bottleneck.attention.fn", config, last),
        "bottleneck_block_1": block("bottleneck.post_block", last, last),
        "unpatch": block("to_out.module_list.0.block", patch, sources),
    }
    for level, (above, width) in enumerate(itertools.pairwise(widths)):
        factor, attention = config.factors[level], config.attentions[level]
        # Theirs are numbered in the order of application.
        down, up = f"downsamples.{level}", f"upsamples.{config.levels - 1 - level}"
        params[f"down_{level}_conv"] = reader.conv(
            f"{down}.downsample", 2 * factor + 1, above, width, norm="none"
        )
        for i in range(config.blocks[level]):
            params[f"down_{level}_block_{i}"] = block(f"{down}.blocks.{i}", width, width)
        for i in range(config.blocks[level] + attention):
            params[f"up_{level}_block_{i}"] = block(f"{up}.blocks.{i}", 2 * width, width)
        if attention:
            for ours, theirs in (("down", down), ("up", up)):
                params[f"{ours}_{level}_transformer"] = _transformer(
                    reader, f"{theirs}.transformer", config, width
                )
        kernel = 3 if factor == 1 else 2 * factor
        params[f"up_{level}_conv"] = reader.conv(
            f"{up}.upsample", kernel, width, above, norm="none", transposed=factor > 1
        )
    return {"params": finish(reader, params)}


def _noise(reader: Reader, config: UNetConfig) -> Params:
    width = config.condition_width
    params: Params = {
        "frequency": reader.take("to_time.0.0.weights", (config.width // 2,)),
        "dense_0": dense(reader, "to_time.0.1", config.width + 1, width),
        "dense_1": dense(reader, "to_mapping.0", width, width),
        "dense_2": dense(reader, "to_mapping.2", width, width),
    }
    if config.per_track:
        params["tracks"] = mean_of_tracks(config.stems, width)
    return params


def _residual_block(reader: Reader, name: str, inputs: int, outputs: int, condition: int) -> Params:
    def norm(name: str, width: int) -> dict[str, ndarray]:
        return {
            "scale": reader.take(f"{name}.weight", (width,)),
            "bias": reader.take(f"{name}.bias", (width,)),
        }

    scale_shift = f"{name}.to_scale_shift.to_scale_shift.1"
    params: Params = {
        "scale_shift": dense(reader, scale_shift, condition, 2 * outputs),
        "norm_0": norm(f"{name}.block1.groupnorm", inputs),
        "conv_0": reader.conv(f"{name}.block1.project", 3, inputs, outputs, norm="none"),
        "norm_1": norm(f"{name}.block2.groupnorm", outputs),
        "conv_1": reader.conv(f"{name}.block2.project", 3, outputs, outputs, norm="none"),
    }
    if inputs != outputs:
        params["shortcut"] = _pointwise(reader, f"{name}.to_out", inputs, outputs)
    return params


def _pointwise(reader: Reader, name: str, inputs: int, outputs: int, bias: bool = True) -> Params:
    """A linear layer that they have as a convolution of one frame."""
    params = reader.conv(name, 1, inputs, outputs, norm="none", bias=bias)
    return params | {"kernel": params["kernel"][0]}


def _self_attention(reader: Reader, name: str, config: UNetConfig, width: int) -> Params:
    heads, head_dim = config.heads, config.head_dim
    both = heads_in(reader, f"{name}.to_kv", width, 2 * heads, head_dim, bias=False)["kernel"]
    out = f"{name}.attention.to_out"
    return {
        "norm_in": {"scale": reader.take(f"{name}.norm.g", (width,))},
        "attention": {
            "query": heads_in(reader, f"{name}.to_q", width, heads, head_dim, bias=False),
            "key": {"kernel": both[:, :heads]},
            "value": {"kernel": both[:, heads:]},
            "out": heads_out(reader, f"{out}.0", width, heads, head_dim, bias=False),
        },
        "norm_out": {"scale": reader.take(f"{out}.1.g", (width,))},
    }


def _transformer(reader: Reader, name: str, config: UNetConfig, width: int) -> Params:
    hidden, ff = config.ff_multiplier * width, f"{name}.feed_forward"
    return {
        "attention": _self_attention(reader, f"{name}.attention.fn", config, width),
        "ff_norm": {"scale": reader.take(f"{ff}.0.g", (1, width, 1))[0, :, 0]},
        "ff_in": _pointwise(reader, f"{ff}.1", width, hidden, bias=False),
        "ff_middle_norm": {"scale": reader.take(f"{ff}.3.g", (1, hidden, 1))[0, :, 0]},
        "ff_out": _pointwise(reader, f"{ff}.4", hidden, width, bias=False),
    }
