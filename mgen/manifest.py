"""`manifest.json`: what an artefact is and what it was made from.

Every trained model and every token dataset carries one. A consumer states what it needs with
`require` and is refused by name where the artefact differs, so that tokens of one codec never reach
a model trained on another's.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from mgen import files
from mgen.errors import UserError

FILE = "manifest.json"


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able config, independent of key order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def write(folder: str | Path, manifest: dict[str, Any]) -> None:
    """Writes `folder/manifest.json` atomically (temporary name, then rename)."""
    files.write_json(Path(folder) / FILE, manifest)


def read(folder: str | Path) -> dict[str, Any]:
    """Reads `folder/manifest.json`; `UserError` where it is missing or not JSON."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: no {FILE} here; expected a folder written by mgen (train, tokenize)"
        )
    try:
        manifest = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(manifest).__name__}")
    return manifest


def require(manifest: dict[str, Any], where: str | Path, **expected: Any) -> None:
    """Raises `UserError` naming the first field of `manifest` that differs from `expected`.

    Of a dict that is expected ({"streams": {"acoustic": {"codebooks": 4}}}) the fields named are
    compared, and reported as "streams.acoustic.codebooks".
    """
    found = flatten(manifest)
    # As JSON has it, where a tuple is a list.
    for field, value in flatten(json.loads(json.dumps(expected))).items():
        if found.get(field) != value:
            raise UserError(f"{where}: {field} is {found.get(field)!r}, expected {value!r}")


def flatten(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty dict stays."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def claim(folder: str | Path, about: dict[str, Any]) -> None:
    """Makes `folder` the place of what `about` describes: writes its manifest, or refuses a folder
    whose manifest differs in any field, naming the first one (`UserError`)."""
    path = Path(folder) / FILE
    if not path.exists():
        write(folder, about)
        return
    found = read(folder)
    require(found, path, **about)
    for field in flatten(found).keys() - flatten(about).keys():
        raise UserError(f"{path}: has {field}, expected none; made by another command")
