"""What is exported: functions of named arrays, and the weights that several of them share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export

from mgen.typing import Array, Params

Arrays = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Signature:
    """One function.

    Attributes:
      name: an identifier, unique in an export.
      run: (params, inputs) -> outputs, the latter two by name; pure, without a constant of the
        weights' size.
      inputs: shapes and dtypes; dimensions may be symbols of one `jax.export.symbolic_shape` scope.
    """

    name: str
    run: Callable[[Params, Arrays], Arrays]
    inputs: dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights and the functions that read them.

    Attributes:
      name: its family; names the file of its weights.
      params: the weights, a pytree of dicts and lists.
      signatures: what is exported of it.
      fingerprint: of the trained model (`mgen.train.checkpoint.Trained`).
      about: what a caller must know of it (rates, sizes), JSON-able.
    """

    name: str
    params: Params
    signatures: tuple[Signature, ...]
    fingerprint: str
    about: dict[str, Any]

    def weights(self) -> dict[str, np.ndarray]:
        """Every array by its path in `params`: "params/encoder/conv_in/kernel"."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        return {_name(path): np.asarray(leaf, order="C") for path, leaf in leaves}

    def function(self, signature: Signature) -> Callable[[Arrays, Arrays], Arrays]:
        """`signature.run` as a function of (`weights()`, inputs)."""
        paths, tree = jax.tree_util.tree_flatten_with_path(self.params)
        names = [_name(path) for path, _ in paths]

        def run(weights: Arrays, inputs: Arrays) -> Arrays:
            params = jax.tree.unflatten(tree, [weights[name] for name in names])
            return signature.run(params, inputs)

        return run

    def specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of `weights()`."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        return {_name(p): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for p, leaf in leaves}


def symbolic(**inputs: tuple[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Inputs of a signature from ("b, 320*f, 1", dtype) each; "b" is the same "b" in all."""
    scope = export.SymbolicScope()
    return {
        name: jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for name, (shape, dtype) in inputs.items()
    }


def describe(specs: dict[str, Any]) -> dict[str, Any]:
    """JSON-able: {"audio": {"shape": ["b", "320*f", 1], "dtype": "float32"}}."""
    return {
        name: {
            "shape": [dim if isinstance(dim, int) else str(dim) for dim in spec.shape],
            "dtype": np.dtype(spec.dtype).name,
        }
        for name, spec in specs.items()
    }


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
