"""TensorFlow SavedModels by orbax-export: served, or called from Python, without JAX.

Each signature takes and gives arrays by name, as `tf.saved_model.load(folder).signatures[name]`
does. The weights of all models are its variables; the programs are those of `stablehlo`.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

from mgen.errors import UserError
from mgen.export import stablehlo
from mgen.export.signature import Arrays, Signature, models_of

FOLDER = "saved_model"


def require() -> None:
    """Raises `UserError` where this environment cannot write a SavedModel."""
    if jax.__version_info__ >= (0, 11):
        raise UserError(
            f"--formats=saved_model: jax is {jax.__version__}, expected 0.10 with the extra "
            "`export`: TensorFlow cannot read what later ones write; --formats=jax_export works"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import orbax.export  # noqa: F401
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--formats=saved_model: {error.name} is not installed, expected the extra `export` "
            "(pip install 'mgen[export]'); --formats=jax_export needs no TensorFlow"
        ) from error


def write(folder: Path, signatures: Sequence[Signature], platforms: tuple[str, ...]) -> None:
    """Writes FOLDER below `folder`, with every signature."""
    import tensorflow as tf
    from orbax.export import ExportManager, JaxModule, ServingConfig

    functions, shapes, servings = {}, {}, []
    for signature in signatures:
        name, specs = signature.name, signature.inputs
        exported = decomposed(stablehlo.lower(signature, platforms))
        functions[name] = _of_models([m.name for m in signature.models], exported.call)
        shapes[name] = {key: _polymorphic(spec.shape) for key, spec in specs.items()}
        tensors = {
            key: tf.TensorSpec(_static(spec.shape), tf.as_dtype(spec.dtype), key)
            for key, spec in specs.items()
        }
        servings.append(ServingConfig(name, input_signature=[tensors], method_key=name))
    module = JaxModule(
        {model.name: model.weights() for model in models_of(signatures)},
        functions,
        input_polymorphic_shape=shapes,
        jax2tf_kwargs={name: {"native_serialization_platforms": platforms} for name in functions},
    )
    ExportManager(module, servings).save(str(folder / FOLDER))


def decomposed(exported: export.Exported) -> export.Exported:
    """The same program with every composite operation (erf) written out in plain ones: TensorFlow
    reads no composites."""
    from jax.extend.mlir import ir, passmanager
    from jax.extend.mlir.dialects import stablehlo as dialect

    dialect.register_stablehlo_passes()
    with ir.Context() as context:
        dialect.register_dialect(context)
        module = dialect.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        passes = "builtin.module(func.func(stablehlo-legalize-composite-to-call))"
        passmanager.PassManager.parse(passes).run(module.operation)
        data = dialect.serialize_portable_artifact(module, dialect.get_current_version())
    return dataclasses.replace(exported, mlir_module_serialized=data)


def _of_models(names: Sequence[str], call: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """`call` as a function of the weights of all models."""
    return lambda weights, inputs: call({name: weights[name] for name in names}, inputs)


def _polymorphic(shape: tuple[Any, ...]) -> str:
    """(b, 320*f, 1) as jax2tf reads it."""
    return f"({', '.join(map(str, shape))})"


def _static(shape: tuple[Any, ...]) -> list[int | None]:
    """(b, 320*f, 1) as TensorFlow's shapes say it."""
    return [dim if isinstance(dim, int) else None for dim in shape]
