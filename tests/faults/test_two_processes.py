"""Two processes as one run: they train, save together when one is told to end, and go on as
another number of processes on another mesh."""

import json
import os
import re
import signal
import time

import jax
import numpy as np
import pytest

from mgen.train import checkpoint


def train(dataset, workdir, steps, mesh, *more):
    return (
        "train", "--config=codec/tiny_16khz:smoke", f"--workdir={workdir}",
        f"--config.data.dataset={dataset}", f"--config.train.steps={steps}",
        f"--config.train.mesh={mesh}", "--config.train.log_every=1", "--config.train.eval_every=0",
        "--config.data.batch_size=4", *more,
    )  # fmt: skip


def finish(processes):
    """Returns what each process wrote to stderr."""
    said = []
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]
        said.append(errors)
    return said


def state_of(workdir):
    _, state = checkpoint.load_state(workdir)
    return state


@pytest.mark.slow
def test_two_processes_train_and_one_goes_on_elsewhere(together, scores, tmp_path):
    workdir = tmp_path / "run"
    save = "--config.train.save_every=2"
    finish(together(2, *train(scores, workdir, 2, "data=2,fsdp=2", save)))
    half = state_of(workdir)
    assert int(half.step) == 2
    assert len(list((workdir / "checkpoints" / "2" / "data").glob("process_*-of-2.json"))) == 2
    # One process, two devices, and from there four of two processes again.
    finish(together(1, *train(scores, workdir, 4, "fsdp=2", save)))
    finish(together(2, *train(scores, workdir, 6, "data=4", save)))
    whole = state_of(workdir)
    assert int(whole.step) == 6
    leaves = jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), half.params, whole.params))
    assert any(leaves) and all(np.isfinite(x).all() for x in jax.tree.leaves(whole.params))
    two_processes_do_what_one_does(together, scores, workdir, tmp_path)


def two_processes_do_what_one_does(together, scores, codec, tmp_path):
    """Evaluation to the last bits, tokens to the byte."""
    reports, files = [], []
    for count, mesh in ((1, "data=2"), (2, "data=2,fsdp=2")):
        out = tmp_path / f"by_{count}"
        given = (f"--workdir={codec}", "--split=train", "--batches=2", f"--mesh={mesh}")
        finish(together(count, "evaluate", *given, f"--out={out}"))
        reports.append(json.loads((out / "report.json").read_text()))
        folder = tmp_path / f"tokens_by_{count}"
        given = (f"--codec={codec}", f"--dataset={scores}", "--max_seconds=2", "--splits=train")
        said = finish(together(count, "tokenize", *given, f"--out={folder}"))
        for number, errors in enumerate(said):
            # Each writes its own shards of four.
            own = {f"{shard + 1}/4" for shard in range(number, 4, count)}
            assert set(re.findall(r"tokenize train (\d/4)", errors)) == own
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert reports[0].keys() == reports[1].keys() and "loss" in reports[0]
    for name, value in reports[0].items():
        # Float32 means in another order.
        assert reports[1][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert len(files[0]) > 8 and files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_one_process_saves_on_all(together, scores, tmp_path, number):
    workdir = tmp_path / "run"
    processes = together(
        2, *train(scores, workdir, 100_000, "data=4", "--config.train.save_every=5")
    )
    folder = workdir / "checkpoints"
    deadline = time.monotonic() + 300
    while not any(path.name.isdigit() for path in folder.glob("*")):
        assert all(process.poll() is None for process in processes), processes[0].stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(processes[1].pid, number)
    finish(processes)
    step = max(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    state = state_of(workdir)
    assert int(state.step) == step
    # Saved at the step that both had reached, not at the next multiple of five.
    assert len(list((folder / str(step) / "data").glob("process_*-of-2.json"))) == 2
