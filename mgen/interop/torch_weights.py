"""What all name maps share: reading safetensors, taking tensors by name, layouts of convolutions
and LSTMs.

PyTorch keeps convolution weights as [out, in, k] (transposed ones as [in, out, k]), ours are [k,
in, out]; its weight norm stores gain and direction as `parametrizations.weight.original0/1` or,
before 2.1, `weight_g/weight_v`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.typing import ndarray

StateDict = dict[str, ndarray]
# Names of (gain, direction) of a weight-normalised weight.
WEIGHT_NORM_NAMES = {
    "parametrized": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    "legacy": ("weight_g", "weight_v"),
}


def load_safetensors(path: str | Path) -> StateDict:
    """Tensors of a safetensors file by name. Raises `UserError` where the file is missing,
    truncated or not of this format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a .safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error


class Reader:
    """Takes tensors out of a state dict, each checked and counted, so that nothing is lost
    unnoticed.
    """

    def __init__(self, state: StateDict):
        self.state = state
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.state

    def take(self, name: str, shape: tuple[int, ...]) -> ndarray:
        """The tensor `name` as float32; `UserError` where it is missing or of another shape."""
        if name not in self.state:
            raise UserError(f"released weights: {name} is missing, expected shape {shape}")
        tensor = np.asarray(self.state[name])
        if tensor.shape != shape:
            raise UserError(f"released weights: {name} has shape {tensor.shape}, expected {shape}")
        self.taken.add(name)
        return tensor.astype(np.float32)

    def finish(self, ignore: tuple[str, ...] = ()) -> None:
        """Raises `UserError` naming the first tensor that was not taken and whose name has no
        suffix of `ignore`.
        """
        left = [name for name in self.state if name not in self.taken and not name.endswith(ignore)]
        if left:
            raise UserError(
                f"released weights: {min(left)} has no place in this config "
                f"({len(left)} such tensors)"
            )

    def conv(
        self,
        name: str,
        kernel_size: int,
        inputs: int,
        outputs: int,
        *,
        norm: str,
        transposed: bool = False,
        bias: bool = True,
    ) -> dict[str, ndarray]:
        """Our {"kernel", ["scale" | "scale_in"], ["bias"]} of the convolution `name`,
        weight-normalised or not on either side.
        """
        rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
        shape, gain_shape = (rows, columns, kernel_size), (rows, 1, 1)
        gain = None
        if f"{name}.weight" in self:
            direction = self.take(f"{name}.weight", shape)
        else:
            # Missing altogether is reported under the current naming.
            naming = "legacy" if f"{name}.weight_v" in self else "parametrized"
            gain_name, direction_name = WEIGHT_NORM_NAMES[naming]
            gain = self.take(f"{name}.{gain_name}", gain_shape)
            direction = self.take(f"{name}.{direction_name}", shape)
        length = np.sqrt(np.sum(np.square(direction), axis=(1, 2), keepdims=True))
        params = {}
        if norm == "weight":
            params["scale_in" if transposed else "scale"] = (length if gain is None else gain)[
                :, 0, 0
            ]
        elif gain is not None:
            direction = direction * (gain / length)
        params["kernel"] = direction.transpose((2, 0, 1) if transposed else (2, 1, 0))
        if bias:
            params["bias"] = self.take(f"{name}.bias", (outputs,))
        return params

    def lstm(self, name: str, layers: int, features: int) -> dict[str, ndarray]:
        """Our parameters of the unidirectional LSTM `name`; gates are in PyTorch's order on both
        sides.
        """
        params = {}
        for i in range(layers):
            for ours, theirs in (("input", "ih"), ("hidden", "hh")):
                kernel = self.take(f"{name}.weight_{theirs}_l{i}", (4 * features, features))
                params[f"{ours}_kernel_{i}"] = kernel.T
                params[f"{ours}_bias_{i}"] = self.take(
                    f"{name}.bias_{theirs}_l{i}", (4 * features,)
                )
        return params


def conv_to_torch(
    name: str, params: dict[str, Any], naming: str = "parametrized", transposed: bool = False
) -> StateDict:
    """The state dict entries of a convolution; `naming` is a key of `WEIGHT_NORM_NAMES`."""
    kernel = np.asarray(params["kernel"])
    direction = kernel.transpose((1, 2, 0) if transposed else (2, 1, 0))
    gain = params.get("scale_in" if transposed else "scale")
    state: StateDict = {}
    if gain is None:
        state[f"{name}.weight"] = direction
    else:
        gain_name, direction_name = WEIGHT_NORM_NAMES[naming]
        state[f"{name}.{gain_name}"] = np.asarray(gain)[:, None, None]
        state[f"{name}.{direction_name}"] = direction
    if "bias" in params:
        state[f"{name}.bias"] = np.asarray(params["bias"])
    return state


def lstm_to_torch(name: str, params: dict[str, Any]) -> StateDict:
    state: StateDict = {}
    for i in range(len(params) // 4):
        for ours, theirs in (("input", "ih"), ("hidden", "hh")):
            state[f"{name}.weight_{theirs}_l{i}"] = np.asarray(params[f"{ours}_kernel_{i}"]).T
            state[f"{name}.bias_{theirs}_l{i}"] = np.asarray(params[f"{ours}_bias_{i}"])
    return state
