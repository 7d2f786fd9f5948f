"""Files are whole or not there."""

import json

import pytest

from mgen import files


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == json.dumps({"a": 2, "b": 1}, indent=2) + "\n"
    with files.replacing(path) as temporary:
        temporary.write_text("after")
        assert json.loads(path.read_text()) == {"a": 2, "b": 1}
    assert path.read_text() == "after"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
