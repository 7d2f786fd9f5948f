"""What the name maps of Transformers share: linear layers, projections by heads, norms.

PyTorch keeps a linear weight as [out, in], ours are [in, out] and, around attention, split into
heads.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.interop.torch_weights import Reader
from mgen.nn.transformer import stack_layers
from mgen.typing import Params

# transformers writes activations by other names.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


def activation(name: str, field: str) -> str:
    """Our name of the activation that a config of transformers has in `field`."""
    if name not in ACTIVATIONS:
        raise UserError(f"{field} is {name!r}, expected one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def dense(
    reader: Reader, name: str, inputs: int, outputs: int, bias: bool = True
) -> dict[str, np.ndarray]:
    """Our parameters of a linear layer."""
    params = {"kernel": reader.take(f"{name}.weight", (outputs, inputs)).T}
    if bias:
        params["bias"] = reader.take(f"{name}.bias", (outputs,))
    return params


def heads_in(
    reader: Reader,
    name: str,
    dim: int,
    heads: int,
    head_dim: int | None = None,
    bias: bool = True,
) -> dict[str, np.ndarray]:
    """Projection to queries, keys or values: kernel [D, H, hd], bias [H, hd]."""
    shape = (heads, head_dim or dim // heads)
    params = dense(reader, name, dim, shape[0] * shape[1], bias)
    return {
        "kernel": params["kernel"].reshape(dim, *shape),
        **({"bias": params["bias"].reshape(shape)} if bias else {}),
    }


def heads_out(
    reader: Reader,
    name: str,
    dim: int,
    heads: int,
    head_dim: int | None = None,
    bias: bool = True,
) -> dict[str, np.ndarray]:
    """Projection from the heads: kernel [H, hd, D]."""
    shape = (heads, head_dim or dim // heads)
    params = dense(reader, name, shape[0] * shape[1], dim, bias)
    return params | {"kernel": params["kernel"].reshape(*shape, dim)}


def layer_norm(reader: Reader, name: str, dim: int) -> dict[str, np.ndarray]:
    return {
        "scale": reader.take(f"{name}.weight", (dim,)),
        "bias": reader.take(f"{name}.bias", (dim,)),
    }


def arrange(layers: Params, scan: bool) -> Params:
    """Parameters of `Transformer` from unrolled ones."""
    return stack_layers(layers) if scan else layers


def finish(reader: Reader, params: Params, ignore: tuple[str, ...] = ()) -> Params:
    """`params` as JAX arrays, once every tensor of `reader` has been taken."""
    reader.finish(ignore)
    return jax.tree.map(jnp.asarray, params)
