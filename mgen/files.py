"""Files that are whole or not there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write what `path` shall hold: a temporary name beside it, which becomes `path` at
    the end of the `with` block and is removed where that ends in an error. Makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Writes `value`, its keys sorted, as JSON that ends with a newline."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent, sort_keys=True) + "\n")
