"""`jax.export` artefacts: one StableHLO program a function for all platforms, weights beside it.

The weights are inputs of the programs, so they are stored once a model, as safetensors, however
many functions and platforms there are.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import safetensors.numpy
from jax import export

from mgen.errors import UserError
from mgen.export.signature import Signature, models_of

FOLDER = "jax_export"
PLATFORMS = ("cpu", "cuda", "tpu")
# What a program may call by name. Others are code of the library that runs it, which a program
# from elsewhere must not choose from; a shape assertion only compares sizes.
CUSTOM_CALLS = {"shape_assertion"}


def program_file(signature: str) -> str:
    return f"{FOLDER}/{signature}.stablehlo"


def weights_file(model: str) -> str:
    return f"{FOLDER}/{model}.safetensors"


def write(folder: Path, signatures: Sequence[Signature], platforms: tuple[str, ...]) -> None:
    """Writes FOLDER below `folder`: a program a signature, a file of weights a model."""
    (folder / FOLDER).mkdir()
    for model in models_of(signatures):
        safetensors.numpy.save_file(model.weights(), folder / weights_file(model.name))
    for signature in signatures:
        exported = lower(signature, platforms)
        (folder / program_file(signature.name)).write_bytes(exported.serialize(vjp_order=0))


@contextlib.contextmanager
def no_source_paths() -> Iterator[None]:
    """Programs lowered in this block say nothing of the machine that they were made on."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def lower(signature: Signature, platforms: tuple[str, ...]) -> export.Exported:
    """The program of `signature` as a function of (weights by model, inputs); nothing is compiled.

    Raises `ValueError` where it would carry a custom call: loading refuses it.
    """
    run = jax.jit(signature.function)
    exported = export.export(run, platforms=platforms)(signature.specs(), signature.inputs)
    foreign = custom_calls(exported) - CUSTOM_CALLS
    if foreign:
        raise ValueError(f"{signature.name}: calls {sorted(foreign)}, which no export can carry")
    return exported


def custom_calls(exported: export.Exported) -> set[str]:
    """Names of what a program calls outside itself, "?" where one is not written plainly."""
    text = exported.mlir_module()
    plain = re.findall(r"stablehlo\.custom_call @(\w+)\(", text)
    return set(plain) | ({"?"} if len(plain) != text.count("custom_call") else set())


def read(path: Path, data: bytes, about: dict[str, Any]) -> export.Exported:
    """The program in `data`, the bytes of `path`.

    Raises `UserError` where this jax cannot read it, where it is not lowered for the present
    platform, or calls anything but itself.
    """
    try:
        exported = export.deserialize(bytearray(data))
        foreign = custom_calls(exported) - CUSTOM_CALLS
    except Exception as error:  # of flatbuffers, MLIR or jax
        raise UserError(
            f"{path}: not a program that jax {jax.__version__} can read, written by jax "
            f"{about.get('jax')} ({' '.join(str(error).split())[:200]})"
        ) from error
    if foreign:
        raise UserError(f"{path}: calls {', '.join(sorted(foreign))}, expected no code but its own")
    # A GPU backend is called "gpu", what programs are lowered for "cuda".
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in exported.platforms:
        raise UserError(f"{path}: made for {', '.join(exported.platforms)}, this machine is {here}")
    return exported
