"""The real commands, and a small prepared dataset made once for the session."""

import subprocess
import sys
from pathlib import Path

import pytest


def run_mgen(*args, cwd=None, check=True):
    """`mgen <args>` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mgen.cli", *map(str, args)], capture_output=True, text=True, cwd=cwd
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def mgen():
    return run_mgen


@pytest.fixture(scope="session")
def scores(tmp_path_factory) -> Path:
    """corpus_scores/band, a few pieces."""
    out = tmp_path_factory.mktemp("data")
    run_mgen("prepare_data", "--dataset=corpus_scores/band", "--limit=12", f"--out={out}")
    return next(out.glob("corpus_scores/band/*"))
