"""The folder of an export: written whole or not at all, checked before anything of it is read.

  OUT/manifest.json       kind "export": signatures, models, parents, SHA-256 of every other file
  OUT/saved_model/        for TensorFlow
  OUT/jax_export/         for jax: NAME.stablehlo a signature, NAME.safetensors a model
  OUT/vocabulary.model    where the exported models read text

Example:
    functions = artefact.load("out/export")
    codes = functions["encode"](audio=audio)["codes"]
"""

import dataclasses
import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mgen import manifest
from mgen.errors import UserError
from mgen.export import saved_model, stablehlo
from mgen.export.signature import Arrays, Signature, describe, models_of
from mgen.typing import Array

KIND = "export"
FORMATS: dict[str, Any] = {"saved_model": saved_model, "jax_export": stablehlo}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to write where.

    Attributes:
      out: folder; an export that stands there is replaced.
      formats: of `FORMATS`.
      platforms: that the programs are lowered for, of `stablehlo.PLATFORMS`.

    Raises:
      UserError: an unknown format or platform, a format whose library is missing, or something
        else than an export at `out`.
    """

    out: str | Path
    formats: tuple[str, ...] = tuple(FORMATS)
    platforms: tuple[str, ...] = stablehlo.PLATFORMS

    def __post_init__(self) -> None:
        _require_known("formats", self.formats, FORMATS)
        _require_known("platforms", self.platforms, stablehlo.PLATFORMS)
        out = Path(self.out)
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            found = manifest.read(out).get("kind") if (out / manifest.FILE).is_file() else "files"
            if found != KIND:
                raise UserError(f"--out={out}: holds {found}, expected an export or nothing")
        if "saved_model" in self.formats:
            saved_model.require()


def write(
    job: Job, signatures: Sequence[Signature], files: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Writes the folder and returns its manifest.

    Args:
      files: name -> path of what travels along (a vocabulary).
    """
    out = Path(job.out).absolute()
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        with stablehlo.no_source_paths():
            for name in job.formats:
                FORMATS[name].write(temporary, signatures, job.platforms)
        for name, path in (files or {}).items():
            shutil.copyfile(path, temporary / name)
        about = _about(job, signatures) | {"files": _hashes(temporary)}
        manifest.write(temporary, about)
        _replace(out, temporary)
    except OSError as error:
        raise UserError(f"--out={job.out}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return about


def load(folder: str | Path) -> dict[str, Callable[..., dict[str, Array]]]:
    """The exported functions by name, each of arrays by name: f(audio=...)["codes"].

    Compiled once for each set of shapes. Neither Python nor native code of the export runs: what is
    read are StableHLO programs that call nothing but themselves, and safetensors. The hashes tell
    damage; they do not tell who wrote the folder.

    Raises `UserError` where a file is missing, changed or not of this jax, naming it.
    """
    folder = Path(folder)
    about = manifest.read(folder)
    manifest.require(about, folder / manifest.FILE, kind=KIND)
    for field in ("formats", "files", "signatures"):
        if field not in about:
            raise UserError(f"{folder / manifest.FILE}: {field} is missing; export again")
    if "jax_export" not in about["formats"]:
        formats = ",".join(about["formats"])
        raise UserError(f"{folder}: holds no jax_export, made with --formats={formats}")
    weights: dict[str, Arrays] = {}
    functions: dict[str, Callable[..., dict[str, Array]]] = {}
    for name, signature in about["signatures"].items():
        for model in signature["models"]:
            if model not in weights:
                data = _checked(folder, stablehlo.weights_file(model), about)
                weights[model] = jax.tree.map(jnp.asarray, safetensors.numpy.load(data))
        file = stablehlo.program_file(name)
        exported = stablehlo.read(folder / file, _checked(folder, file, about), about)
        own = {model: weights[model] for model in signature["models"]}
        functions[name] = Function(name, exported.call, own, signature["inputs"])
    return functions


class Function:
    """One loaded function, called with its inputs by name; `inputs` says which (see
    `mgen.export.signature.describe`)."""

    def __init__(self, name: str, call: Any, weights: dict[str, Arrays], inputs: dict[str, Any]):
        self.name, self.inputs = name, inputs
        self._weights, self._call = weights, jax.jit(call)

    def __call__(self, **inputs: Any) -> dict[str, Array]:
        """Raises `UserError` for other names, ranks or sizes than the signature's."""
        if inputs.keys() != self.inputs.keys():
            found, expected = ", ".join(sorted(inputs)), ", ".join(sorted(self.inputs))
            raise UserError(f"{self.name}: inputs are {found or 'none'}, expected {expected}")
        arrays = {key: self._checked(key, inputs[key]) for key in self.inputs}
        try:
            return self._call(self._weights, arrays)
        except ValueError as error:  # A length that is no multiple, or batches that differ.
            found = ", ".join(_named(key, array) for key, array in arrays.items())
            expected = ", ".join(_named_spec(key, spec) for key, spec in self.inputs.items())
            raise UserError(f"{self.name}: inputs are {found}, expected {expected}") from error

    def _checked(self, key: str, value: Any) -> Array:
        spec = self.inputs[key]
        array = value if isinstance(value, Array) else np.asarray(value)
        fits = len(array.shape) == len(spec["shape"]) and all(
            isinstance(want, str) or have == want for have, want in zip(array.shape, spec["shape"])
        )
        if not fits or not np.can_cast(array.dtype, spec["dtype"], "same_kind"):
            found, expected = _named(key, array), _named_spec(key, spec)
            raise UserError(f"{self.name}: input is {found}, expected {expected}")
        return jnp.asarray(array, spec["dtype"])


def _named(key: str, array: Any) -> str:
    return _named_spec(key, describe({key: array})[key])


def _named_spec(key: str, spec: dict[str, Any]) -> str:
    """audio float32 [b, 320*f, 1]"""
    return f"{key} {spec['dtype']} [{', '.join(map(str, spec['shape']))}]"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def report(about: dict[str, Any]) -> str:
    """A line a signature: encode(audio float32 [b, 320*f, 1]) -> codes int32 [b, f, 4]."""

    def arrays(specs: dict[str, Any]) -> str:
        return ", ".join(_named_spec(name, spec) for name, spec in specs.items())

    return "\n".join(
        f"{name}({arrays(signature['inputs'])}) -> {arrays(signature['outputs'])}"
        for name, signature in about["signatures"].items()
    )


def _about(job: Job, signatures: Sequence[Signature]) -> dict[str, Any]:
    models = models_of(signatures)
    return {
        "kind": KIND,
        "formats": list(job.formats),
        "platforms": list(job.platforms),
        "jax": jax.__version__,
        "mgen": importlib.metadata.version("mgen"),
        "models": {model.name: model.about for model in models},
        "parents": {model.name: model.fingerprint for model in models},
        "signatures": {
            signature.name: {
                "models": [model.name for model in signature.models],
                "inputs": describe(signature.inputs),
                "outputs": describe(
                    jax.eval_shape(signature.function, signature.specs(), signature.inputs)
                ),
            }
            for signature in signatures
        },
    }


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def _replace(out: Path, new: Path) -> None:
    """Puts `new` in the place of the export (or the empty folder) at `out`."""
    old = out.with_name(f"{new.name}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _checked(folder: Path, name: str, about: dict[str, Any]) -> bytes:
    """The bytes of a file that the manifest vouches for."""
    path, expected = folder / name, about["files"].get(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise UserError(f"{path}: not the file that {manifest.FILE} was written for; export again")
    return data


def _require_known(flag: str, values: tuple[str, ...], known: Any) -> None:
    unknown = [value for value in values if value not in known]
    if unknown or not values:
        found = unknown[0] if unknown else ""
        raise UserError(f"--{flag}: {found!r} is none, expected of {', '.join(known)}")
