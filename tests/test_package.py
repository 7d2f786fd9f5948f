"""Laws of the repository itself: what may import what, sizes, the lock, the command line."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mgen
from mgen import cli

ROOT = Path(__file__).parents[1]
FAMILIES = {"codec", "joint", "semantic", "lm", "stems", "latent", "control", "prefs", "symbolic"}
SOURCES = sorted(
    path
    for folder in ("mgen", "configs", "data", "launch", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
SCRIPTS = [path for path in sorted((ROOT / "launch").glob("*.py")) if path.name != "__init__.py"]


def test_importing_every_module_imports_no_tensorflow_and_no_torch():
    code = (
        "import importlib, pkgutil, sys, mgen\n"
        "names = [m.name for m in pkgutil.walk_packages(mgen.__path__, 'mgen.')]\n"
        "assert len(names) > 40, names\n"
        "for name in names: importlib.import_module(name)\n"
        "bad = {'tensorflow', 'torch', 'transformers', 'diffusers'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_family_imports_another(family):
    others = FAMILIES - {family}
    for path in (ROOT / "mgen" / family).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            assert parts[0] != "mgen" or len(parts) < 2 or parts[1] not in others, (path, name)


def test_the_mathematics_of_diffusion_stands_alone():
    for path in (ROOT / "mgen" / "diffusion").rglob("*.py"):
        own = {".".join(name.split(".")[:2]) for name in imports(path) if name.startswith("mgen.")}
        assert own <= {"mgen.diffusion", "mgen.errors", "mgen.tree", "mgen.typing"}, (path, own)


def test_only_a_familys_task_imports_the_trainer():
    for family in FAMILIES:
        for path in (ROOT / "mgen" / family).rglob("*.py"):
            if path.name != "task.py":
                bad = [name for name in imports(path) if name.startswith("mgen.train")]
                assert not bad, (path, bad)


def test_files_are_at_most_500_lines_and_scripts_60():
    for path in SOURCES:
        limit = 60 if path in SCRIPTS else 500
        assert len(path.read_text().splitlines()) <= limit, path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_has_help_and_is_a_command(script):
    assert script.stem in cli.COMMANDS
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    assert f"mgen {script.stem}" in done.stdout  # an example of use
    assert done.stdout.count("  --") >= 2 and "flags:" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tran"], "did you mean train"),
        (["train", "--config=codec/tiny_16kHz", "--workdir=x"], "codec/tiny_16khz"),
        (["train", "--config=codec/tiny_16khz", "--workdir=x", "--config.modle=3"], "modle"),
        (["train", "--config=codec/tiny_16khz"], "--workdir"),
        (["train", "--config=codec/tiny_16khz:huge", "--workdir=x"], "huge"),
        (["train", "--wrokdir=x"], "wrokdir"),
    ],
)
def test_wrong_command_lines_give_one_line_and_exit_code_1(args, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mgen.cli", *args], capture_output=True, text=True, cwd=tmp_path
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert message in lines[0] and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_everything_installed_is_pinned_in_the_lock():
    next_jax = importlib.metadata.version("jax").startswith("0.11")
    lock = (ROOT / ("requirements-next.lock" if next_jax else "requirements.lock")).read_text()
    pinned: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.M):
        pinned.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(version)
    for dist in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower()
        if name in ("pip", "setuptools", "wheel", "mgen"):
            continue
        version = dist.version.partition("+")[0]
        assert version in pinned.get(name, ()), f"{name}=={dist.version} is not in the lock"


def test_version_is_the_packages():
    assert importlib.metadata.version("mgen") == mgen.__version__
