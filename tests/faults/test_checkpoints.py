"""Checkpoints that were damaged, or could not be written."""

import contextlib
import errno
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.train.checkpoint import Checkpoints


class Counter:
    """An iterator as Grain's, of a number."""

    def __init__(self, number=0):
        self.number = number

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


@pytest.fixture
def state():
    return {"x": jax.numpy.arange(10_000.0)}


def save(workdir, state, *steps, keep=5):
    with contextlib.closing(Checkpoints(workdir, keep)) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"x": state["x"] + step}, Counter(step), {})


def restore(workdir, state):
    with contextlib.closing(Checkpoints(workdir, 5)) as checkpoints:
        iterator = Counter()
        return checkpoints.restore(state, iterator), iterator


def truncate(folder):
    """Every file of the arrays loses its second half."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_checkpoint_is_skipped_and_put_aside(tmp_path, state, caplog):
    save(tmp_path, state, 1, 2, 3)
    truncate(tmp_path / "checkpoints" / "3" / "state")
    found, iterator = restore(tmp_path, state)
    np.testing.assert_array_equal(found["x"], state["x"] + 2)
    assert iterator.number == 2
    assert (tmp_path / "damaged_3").is_dir() and not (tmp_path / "checkpoints" / "3").exists()
    save(tmp_path, state, 3)  # training goes on
    found, iterator = restore(tmp_path, state)
    assert float(found["x"][0]) == 3 and iterator.number == 3


def test_a_checkpoint_whose_data_is_missing_is_skipped(tmp_path, state):
    save(tmp_path, state, 1, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "data")
    _, iterator = restore(tmp_path, state)
    assert iterator.number == 1


def test_what_others_read_stays_as_it_is(tmp_path, state, caplog):
    save(tmp_path, state, 1, 2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "3.orbax-checkpoint-tmp-1")  # a save under way
    truncate(folder / "2" / "state")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with contextlib.closing(Checkpoints(tmp_path, own=False)) as checkpoints:
        found = checkpoints.restore(state)
    assert float(found["x"][0]) == 1 and "2: damaged, passed over" in caplog.text
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_one_that_its_run_replaces_meanwhile_is_no_damage(tmp_path, state, monkeypatch):
    save(tmp_path, state, 1, keep=1)
    with contextlib.closing(Checkpoints(tmp_path, own=False)) as checkpoints:
        restore = checkpoints._manager.restore

        def slowly(step, **kwargs):
            if step == 1:
                save(tmp_path, state, 2, keep=1)
            return restore(step, **kwargs)

        monkeypatch.setattr(checkpoints._manager, "restore", slowly)
        assert float(checkpoints.restore(state)["x"][0]) == 2


def test_a_half_written_checkpoint_is_none(tmp_path, state):
    save(tmp_path, state, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp-1")
    found, _ = restore(tmp_path, state)
    assert float(found["x"][0]) == 1


def test_where_none_is_whole_nothing_is_touched(tmp_path, state):
    save(tmp_path, state, 1, 2)
    for step in "12":
        truncate(tmp_path / "checkpoints" / step / "state")
    with pytest.raises(UserError, match="damaged"):
        restore(tmp_path, state)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= {"1", "2"}


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, state, monkeypatch):
    save(tmp_path, state, 1)
    write = Path.write_text

    def full(path, *args, **kwargs):
        if "checkpoints" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr("etils.epath.gpath.PosixGPath.write_text", full)
    with pytest.raises(UserError, match=r"cannot save \(No space left on device\); what was saved"):
        save(tmp_path, state, 2)
    monkeypatch.undo()
    found, iterator = restore(tmp_path, state)
    assert float(found["x"][0]) == 1 and iterator.number == 1


def test_what_has_no_room_is_not_begun(tmp_path, state, monkeypatch):
    save(tmp_path, state, 1)
    before = sorted(tmp_path.rglob("*"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=39_999))
    with pytest.raises(UserError, match=r"a checkpoint has 3\.73e-05 GiB, 3\.73e-05 are free"):
        save(tmp_path, state, 2)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=40_000))
    save(tmp_path, state, 2)
    assert restore(tmp_path, state)[1].number == 2
