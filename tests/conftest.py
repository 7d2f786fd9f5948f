"""Settings of the whole test suite."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Before jax is imported: tests share compiled programs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MGEN_NO_PROGRESS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "mgen-test-compilation-cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Most of the suite's time is the compiler's.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

from mgen import cli

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """What one file compiled is of no use to the next, and would take gigabytes in the end."""
    yield
    jax.clear_caches()


@pytest.fixture
def run_python():
    """Runs a program in a process of its own, with arguments and its environment changed, and gives
    what it printed."""

    def run(program, *arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True, text=True, env=os.environ | environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def compile_for_tpus(run_python):
    """Runs a program that compiles for TPUs."""
    pytest.importorskip("libtpu")
    return functools.partial(run_python, **cli.COMPILE_ONLY)


@pytest.fixture
def run_on_four(run_python):
    """Runs a program on four devices."""
    return functools.partial(run_python, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="4")


@pytest.fixture
def run_notebook(tmp_path):
    """Runs a notebook of colab/ from top to bottom in `tmp_path`; `tmp_path / "out"` has what it
    wrote."""
    import nbformat
    from nbclient import NotebookClient

    def run(path):
        shutil.copy(path, tmp_path)
        notebook = nbformat.read(path, as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells), (
            "commit notebooks without output"
        )
        resources = {"metadata": {"path": tmp_path}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        shown = [
            kind
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            for kind in output.get("data", {})
        ]
        assert "image/png" in shown and "text/html" in shown  # pictures and audio players, inline
        for wav in (tmp_path / "out").rglob("*.wav"):
            assert wav.stat().st_size > 1000, wav

    return run
