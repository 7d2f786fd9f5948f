"""Codec layers in and out of state dicts: a release's name map is a list of slots, read and written
by one code.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from mgen.codec.blocks import ResidualUnit, decoder_layers, encoder_layers
from mgen.codec.config import CodecConfig
from mgen.interop.torch_weights import Reader, StateDict, conv_to_torch, lstm_to_torch
from mgen.nn.activations import Activation
from mgen.nn.conv import Conv1d, ConvTranspose1d
from mgen.nn.recurrent import ResidualLSTM
from mgen.typing import Params

# Parameter of an activation here -> its name in the released codecs.
SNAKES = {"snake": {"alpha": "alpha"}, "snake_beta": {"log_alpha": "alpha", "log_beta": "beta"}}


@dataclasses.dataclass(frozen=True)
class Slot:
    """A layer's `path` in our parameter tree, its `name` in the state dict, and the (unbound) layer
    itself.

    The norm of a group-normalised convolution "x.conv" is "x.norm" over there.
    """

    path: tuple[str, ...]
    name: str
    layer: Any

    @property
    def has_params(self) -> bool:
        return not isinstance(self.layer, Activation) or self.layer.kind in SNAKES

    @property
    def norm_name(self) -> str:
        return self.name.removesuffix(".conv") + ".norm"


def read_layers(reader: Reader, slots: Iterable[Slot]) -> Params:
    """Our parameter tree with every slot read."""
    params: Params = {}
    for slot in slots:
        if slot.has_params:
            node = params
            for part in slot.path[:-1]:
                node = node.setdefault(part, {})
            node[slot.path[-1]] = _read(reader, slot)
    return params


def write_layers(slots: Iterable[Slot], params: Params, naming: str = "parametrized") -> StateDict:
    """State dict entries of every slot; `naming` of weight norm as in
    `torch_weights.WEIGHT_NORM_NAMES`.
    """
    state: StateDict = {}
    for slot in slots:
        if slot.has_params:
            node = params
            for part in slot.path:
                node = node[part]
            state |= _write(slot, node, naming)
    return {name: np.ascontiguousarray(tensor) for name, tensor in state.items()}


def _read(reader: Reader, slot: Slot) -> Params:
    layer, name = slot.layer, slot.name
    tensors: Params
    if isinstance(layer, ResidualLSTM):
        tensors = reader.lstm(name, layer.layers, layer.features)
    elif isinstance(layer, Activation):
        tensors = {
            ours: reader.take(f"{name}.{theirs}", (1, layer.features, 1))[0, :, 0]
            for ours, theirs in SNAKES[layer.kind].items()
        }
    else:
        transposed = isinstance(layer, ConvTranspose1d)
        tensors = reader.conv(
            name,
            layer.kernel_size,
            layer.in_features,
            layer.features,
            norm=layer.norm,
            transposed=transposed,
            bias=transposed or layer.use_bias,
        )
        if layer.norm == "time_group":
            shape = (layer.features,)
            tensors["group_norm"] = {
                "scale": jnp.asarray(reader.take(f"{slot.norm_name}.weight", shape)),
                "bias": jnp.asarray(reader.take(f"{slot.norm_name}.bias", shape)),
            }
    return {
        key: value if isinstance(value, dict) else jnp.asarray(value)
        for key, value in tensors.items()
    }


def _write(slot: Slot, params: Params, naming: str) -> StateDict:
    layer, name = slot.layer, slot.name
    if isinstance(layer, ResidualLSTM):
        return lstm_to_torch(name, params)
    if isinstance(layer, Activation):
        return {
            f"{name}.{theirs}": np.asarray(params[ours])[None, :, None]
            for ours, theirs in SNAKES[layer.kind].items()
        }
    state = conv_to_torch(name, params, naming, isinstance(layer, ConvTranspose1d))
    if isinstance(layer, Conv1d | ConvTranspose1d) and layer.norm == "time_group":
        state[f"{slot.norm_name}.weight"] = np.asarray(params["group_norm"]["scale"])
        state[f"{slot.norm_name}.bias"] = np.asarray(params["group_norm"]["bias"])
    return state


def block_slots(config: CodecConfig) -> Iterator[Slot]:
    """Slots of DAC and Oobleck: conv1, block.i.{res_unit1.., snake1, conv1 | conv_t1}, snake1,
    conv2 in either half.
    """
    ends = {"conv_in": "conv1", "act_out": "snake1", "conv_out": "conv2"}
    stage_parts = {"act": "snake1", "down": "conv1", "up": "conv_t1"}
    unit_parts = {"act_0": "snake1", "conv_0": "conv1", "act_1": "snake2", "conv_1": "conv2"}
    for half, build in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        for ours, layer in build(config):
            if ours in ends:
                yield Slot((half, ours), f"{half}.{ends[ours]}", layer)
                continue
            if not ours.startswith("stage_"):
                continue  # The final activation has no parameters.
            _, stage, part, *unit = ours.split("_")
            block = f"{half}.block.{stage}"
            if not isinstance(layer, ResidualUnit):
                yield Slot((half, ours), f"{block}.{stage_parts[part]}", layer)
                continue
            for name, child in ResidualUnit.branch(layer.config, layer.features, layer.dilation):
                theirs = f"{block}.res_unit{int(unit[0]) + 1}.{unit_parts[name]}"
                yield Slot((half, ours, name), theirs, child)
