"""Kill a real training run at any moment, run the same command again: bit-identical weights."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mgen import tree
from mgen.train import checkpoint

STEPS, SAVE_EVERY = 40, 7


def command(workdir, dataset):
    return [
        sys.executable, "-m", "mgen.cli", "train",
        "--config=codec/tiny_16khz:smoke",
        f"--workdir={workdir}",
        f"--config.data.dataset={dataset}",
        f"--config.train.steps={STEPS}",
        f"--config.train.save_every={SAVE_EVERY}",
        "--config.train.log_every=5",
        "--stopped_code=75",
    ]  # fmt: skip


def finish(workdir, dataset):
    done = subprocess.run(command(workdir, dataset), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, state = checkpoint.load_state(workdir)
    assert int(state.step) == STEPS
    return tree.fingerprint(state)


@pytest.fixture(scope="module")
def uninterrupted(scores, tmp_path_factory):
    """Fingerprint of the whole state (weights, optimiser, codebooks) of a run in one go."""
    return finish(tmp_path_factory.mktemp("whole") / "run", scores)


def kill_after_a_checkpoint(workdir, dataset, number):
    """Starts the run, waits for its first checkpoint and a little more, sends `number`."""
    process = subprocess.Popen(
        command(workdir, dataset), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    # Under its final name: a save under way has a longer one.
    while not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.05)
    os.kill(process.pid, number)
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_killed_run_goes_on_to_identical_weights(uninterrupted, scores, tmp_path, number):
    workdir = tmp_path / "run"
    code = kill_after_a_checkpoint(workdir, scores, number)
    stopped_at = checkpoint.Checkpoints(workdir).latest_step()
    assert stopped_at < STEPS, "the run finished before it was killed"
    # SIGTERM saves the step it is at and ends as it was told to; SIGKILL leaves the last regular
    # checkpoint.
    assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert number == signal.SIGTERM or stopped_at % SAVE_EVERY == 0
    assert finish(workdir, scores) == uninterrupted
