"""The real commands, and a small prepared dataset made once for the session."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from mgen import cli


def run_mgen(*args, cwd=None, check=True):
    """`mgen <args>` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mgen.cli", *map(str, args)], capture_output=True, text=True, cwd=cwd
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_here(*args, check=True):
    """`mgen <args>` in this process: nothing is imported twice, less compiled twice, and all of it
    quickly rather than well."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, own_flags():
        sys.modules.pop(f"mgen.launch.{args[0]}", None)
        patch.setattr(sys, "argv", ["mgen", *map(str, args)])
        patch.setattr(cli, "stage", lambda *command: print(run_here(*command).stdout))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
    assert not check or code == 0, errors.getvalue()
    return subprocess.CompletedProcess(args, code, out.getvalue(), errors.getvalue())


@contextlib.contextmanager
def own_flags():
    """Inside, a command defines its flags as if no other one had defined any; libraries, which are
    imported only once, keep theirs."""

    def ours():
        modules = {name: flags.FLAGS.find_module_defining_flag(name, "") for name in flags.FLAGS}
        return [n for n, m in modules.items() if not m or "mgen" in m or n.startswith("config.")]

    outer = {name: flags.FLAGS[name] for name in ours()}
    for name in outer:
        delattr(flags.FLAGS, name)
    try:
        yield
    finally:
        for name in ours():
            delattr(flags.FLAGS, name)
        for name, flag in outer.items():
            flags.FLAGS[name] = flag


@pytest.fixture(scope="session")
def mgen():
    return run_mgen


@pytest.fixture(scope="session")
def here():
    return run_here


@pytest.fixture(scope="session")
def scores(tmp_path_factory) -> Path:
    """corpus_scores/band, a few pieces."""
    out = tmp_path_factory.mktemp("data")
    run_mgen("prepare_data", "--dataset=corpus_scores/band", "--limit=12", f"--out={out}")
    return next(out.glob("corpus_scores/band/*"))
