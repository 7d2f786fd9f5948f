"""The wheel: everything ships in it, and it works away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    # From a copy of the tracked files: no build folder is left in the checkout or taken from it.
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.split():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("mgen-*.whl"))


def test_wheel_holds_every_module_of_the_repository(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("mgen", "configs", "data", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT).as_posix()
            assert (inside if folder == "mgen" else f"mgen/{inside}") in names, inside


def test_wheel_runs_from_another_folder(wheel, tmp_path):
    """In a venv that holds the wheel and, by path only, this environment's dependencies."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def mgen(*args):
        done = subprocess.run(
            [python, "-m", "mgen.cli", *args], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import mgen; print(mgen.__file__)"],
        cwd=tmp_path,
        env=env,
        text=True,
        capture_output=True,
    )
    assert str(site) in where.stdout, where.stdout + where.stderr
    assert "mgen generate" in mgen("generate", "--help")
    prepared = mgen("prepare_data", "--dataset=corpus_scores/band", "--limit=4", "--out=data")
    dataset = prepared.strip().splitlines()[-1].rpartition("=")[2]
    mgen(
        "train",
        "--config=codec/tiny_16khz:smoke",
        "--workdir=codec",
        f"--config.data.dataset={dataset}",
        "--config.train.steps=2",
    )
    assert (tmp_path / "codec" / "manifest.json").exists()
