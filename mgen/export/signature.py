"""What is exported: functions of named arrays, and the weights that they share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from mgen.typing import Array, Params

Arrays = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights.

    Attributes:
      name: names the file of its weights; unique in an export.
      params: the weights, a pytree.
      fingerprint: of the trained model (`mgen.train.checkpoint.Trained`).
      about: what a caller must know of it (rates, sizes), JSON-able.
    """

    name: str
    params: Params
    fingerprint: str
    about: dict[str, Any]

    def weights(self) -> dict[str, np.ndarray]:
        """Every array by its path in `params`: "params/encoder/conv_in/kernel"."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        return {_name(path): np.asarray(leaf, order="C") for path, leaf in leaves}

    def restored(self, weights: Arrays) -> Params:
        """`params` with other arrays in place of `weights()`."""
        paths, tree = jax.tree_util.tree_flatten_with_path(self.params)
        return jax.tree.unflatten(tree, [weights[_name(path)] for path, _ in paths])

    def specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of `weights()`."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        return {_name(p): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for p, leaf in leaves}


@dataclasses.dataclass(frozen=True)
class Signature:
    """One function.

    Attributes:
      name: an identifier, unique in an export.
      models: whose weights it reads; several functions may share a model.
      run: (params by the model's name, inputs by name) -> outputs by name; pure, without a constant
        of the weights' size.
      inputs: shapes and dtypes; dimensions may be symbols of one `jax.export.symbolic_shape` scope.
    """

    name: str
    models: tuple[Model, ...]
    run: Callable[[dict[str, Params], Arrays], Arrays]
    inputs: dict[str, jax.ShapeDtypeStruct]

    def function(self, weights: dict[str, Arrays], inputs: Arrays) -> Arrays:
        """`run` as a function of each model's `weights()`."""
        params = {model.name: model.restored(weights[model.name]) for model in self.models}
        return self.run(params, inputs)

    def specs(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Shapes and dtypes of the weights that `function` takes."""
        return {model.name: model.specs() for model in self.models}


def models_of(signatures: Sequence[Signature]) -> list[Model]:
    """Every model once."""
    found = {model.name: model for signature in signatures for model in signature.models}
    return list(found.values())


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
