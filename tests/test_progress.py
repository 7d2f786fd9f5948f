"""`mgen.progress` on what is not a terminal."""

import re

from mgen import progress
from mgen.progress import Progress, track


def test_plain_lines_with_count_rate_and_time_left(capfd, monkeypatch):
    monkeypatch.delenv("MGEN_NO_PROGRESS", raising=False)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    assert list(track(range(3), "parsing")) == [0, 1, 2]
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert not out and lines[0].startswith("parsing: 1/3 pieces, ") and " left" in lines[0]
    assert lines[-1].startswith("parsing: 3/3 pieces, ") and " left" not in lines[-1]
    assert re.search(r"[\d.]+ pieces/s, 0:00", lines[-1])


def test_fields_are_shown_and_resumed_units_do_not_count_towards_the_rate(capfd, monkeypatch):
    monkeypatch.delenv("MGEN_NO_PROGRESS", raising=False)
    times = iter([0.0, *[10.0] * 9])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with Progress("training", total=130, unit="steps", initial=100) as bar:
        bar.update(20, loss=0.123456, stage="warm")
    line = capfd.readouterr().err.splitlines()[0]
    assert line == "training: 120/130 steps, 2.0 steps/s, 0:10, 0:05 left, loss 0.1235, stage warm"


def test_silent_when_told(capfd, monkeypatch):
    monkeypatch.setenv("MGEN_NO_PROGRESS", "1")
    assert list(track(iter("ab"), "parsing")) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


def test_clock():
    assert [progress.clock(s) for s in (5, 75, 3675)] == ["0:05", "1:15", "1:01:15"]
