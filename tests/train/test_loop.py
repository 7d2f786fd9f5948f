"""The loop's contract: resume, NaN stop, accumulation, averages, refusals."""

import itertools
import os
import signal

import grain.python as grain
import jax
import numpy as np
import pytest

from mgen import manifest, tree
from mgen.errors import UserError
from mgen.train import loop
from mgen.train.checkpoint import Checkpoints
from mgen.train.logging import read_scalars


def final_state(task, workdir):
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(jax.eval_shape(task.init, jax.random.key(0)))
    checkpoints.close()
    return state


def run(linear, workdir, make_data=None, config=None, **train):
    task_class, make_config, data = linear
    config = config or make_config(**train)
    task = task_class(config)
    done = loop.train(task, config, workdir, make_data or data)
    return done, final_state(task, workdir)


def intercepted(make_data, change):
    """The data of `make_data` with `change(index, batch)` in place of each batch of training."""

    class Iterator(grain.DatasetIterator):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.count = inner, itertools.count()

        def __next__(self):
            return change(next(self.count), next(self.inner))

        def get_state(self):
            return self.inner.get_state()

        def set_state(self, state):
            self.inner.set_state(state)

    return lambda train: Iterator(make_data(train)) if train else make_data(train)


def raise_at(make_data, batch_index, action):
    """The data of `make_data`, with `action()` called before batch `batch_index` is handed out."""

    def change(index, batch):
        if index == batch_index:
            action()
        return batch

    return intercepted(make_data, change)


def test_training_lowers_the_loss(linear, tmp_path):
    task_class, make_config, make_data = linear
    config = make_config(steps=200)
    task = task_class(config)
    batch = {"x": next(make_data(False))["x"]}
    before = task.eval_step(task.init(jax.random.key(0)), batch, jax.random.key(0))["loss"]
    _, state = run(linear, tmp_path, steps=200)
    after = task.eval_step(state, batch, jax.random.key(0))["loss"]
    assert after < 0.3 * before


@pytest.mark.parametrize("crash_at", [3, 7, 11])
def test_crash_and_rerun_gives_the_uninterrupted_weights(linear, tmp_path, crash_at):
    _, whole = run(linear, tmp_path / "whole")

    def crash():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(linear, tmp_path / "cut", raise_at(linear[2], crash_at, crash))
    _, resumed = run(linear, tmp_path / "cut")
    assert tree.fingerprint(resumed) == tree.fingerprint(whole)


def test_sigterm_saves_where_it_stands(linear, tmp_path):
    _, whole = run(linear, tmp_path / "whole")

    def terminate():
        os.kill(os.getpid(), signal.SIGTERM)

    done, stopped = run(linear, tmp_path / "cut", raise_at(linear[2], 6, terminate))
    assert done == 7 == stopped.step
    _, resumed = run(linear, tmp_path / "cut")
    assert tree.fingerprint(resumed) == tree.fingerprint(whole)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_counts_of_zero_stand_for_never(linear, tmp_path):
    counts = dict(log_every=0, save_every=0, eval_every=0, summary_every=0)
    done, state = run(linear, tmp_path, steps=7, **counts)
    assert done == 7 == state.step
    # At the end all is told and kept.
    assert [step for step, _ in read_scalars(tmp_path / "logs", "train/loss")] == [7]
    assert read_scalars(tmp_path / "logs", "eval/loss") == []
    run(linear, tmp_path / "b", eval_every=1, eval_batches=0)
    assert read_scalars(tmp_path / "b/logs", "eval/loss") == []


def test_nan_stops_with_the_metrics_name_and_keeps_the_good_checkpoint(linear, tmp_path):
    class Poisoned(linear[0]):
        def loss(self, params, variables, batch, key, train):
            loss, (metrics, variables) = super().loss(params, variables, batch, key, train)
            bad = jax.numpy.where(variables["stats"]["seen"] > 8 * 8, jax.numpy.nan, 1.0)
            return loss, ({"abs": metrics["abs"] * bad}, variables)

    with pytest.raises(UserError, match=r"step 10: abs not finite"):
        run((Poisoned, *linear[1:]), tmp_path, log_every=100)
    assert Checkpoints(tmp_path).latest_step() == 5


def poisoned(make_data, first, last):
    """The data of `make_data`, with a NaN in the batches `first` to `last`."""

    def change(index, batch):
        if first <= index <= last:
            batch["x"] = np.where(np.arange(4) == 1, np.nan, batch["x"]).astype(np.float32)
        return batch

    return intercepted(make_data, change)


def test_a_step_with_a_nan_is_skipped_where_the_config_says_so(linear, tmp_path, capsys):
    _, make_config, make_data = linear
    config = make_config(nonfinite="skip", steps=8)
    done, state = run(linear, tmp_path, poisoned(make_data, 6, 6), config=config)
    assert done == state.step == 8 and np.isfinite(state.params["weights"]).all()
    assert "loss not finite (nan); skipped" in capsys.readouterr().out
    with np.load(tmp_path / "nonfinite_7_0.npz", allow_pickle=False) as saved:
        assert np.isnan(saved["x"][:, 1]).all() and not np.isnan(saved["x"][:, 0]).any()
    # As if there had been no such batch, but for the keys of the steps.
    _, plain = run(linear, tmp_path / "six", steps=6)
    _, skipped = run(
        linear, tmp_path / "seven", poisoned(make_data, 6, 6),
        config=make_config(nonfinite="skip", steps=7),
    )  # fmt: skip
    np.testing.assert_array_equal(skipped.params["weights"], plain.params["weights"])


def test_too_many_of_them_stop_the_run(linear, tmp_path):
    config = linear[1](nonfinite="skip", steps=50)
    with pytest.raises(UserError, match=r"step 24: .*; stopped"):
        run(linear, tmp_path, poisoned(linear[2], 3, 99), config=config)


def test_another_word_for_it_is_refused(linear, tmp_path):
    with pytest.raises(UserError, match="nonfinite='ignore': expected 'stop' or 'skip'"):
        run(linear, tmp_path, config=linear[1](nonfinite="ignore"))


def test_accumulation_equals_the_whole_batch(linear):
    task_class, make_config, make_data = linear
    batch = {"x": next(make_data(True))["x"]}

    class Noiseless(task_class):
        def loss(self, params, variables, batch, key, train):
            return super().loss(params, variables, batch, jax.random.key(0), train)

    class Quiet(task_class):
        def loss(self, params, variables, batch, key, train):
            error = batch["x"] @ params["weights"] - batch["x"]
            return jax.numpy.mean(error**2), ({}, variables)

    config, split = make_config(), make_config()
    split.optim.accumulate = 4
    params = Quiet(config).init(jax.random.key(0))
    one, _ = Quiet(config).train_step(params, batch, jax.random.key(0))
    four, _ = Quiet(split).train_step(params, batch, jax.random.key(0))
    # float32 sums in another order.
    np.testing.assert_allclose(one.params["weights"], four.params["weights"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [0, 3])
def test_accumulation_of_another_number_is_refused(linear, tmp_path, count):
    config = linear[1]()
    config.optim.accumulate = count
    reason = rf"optim.accumulate={count}: does not divide a batch of 8"
    with pytest.raises(UserError, match=reason):
        run(linear, tmp_path, config=config)


def test_at_least_one_checkpoint_is_kept(linear, tmp_path):
    with pytest.raises(UserError, match=r"train\.keep=0: expected 1 or more"):
        run(linear, tmp_path / "w", keep=0)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("field", ["resume", "init_from"])
def test_a_run_that_is_not_there_is_not_begun(linear, tmp_path, field):
    with pytest.raises(UserError, match="other/checkpoints: no checkpoint here"):
        run(linear, tmp_path / "w", **{field: str(tmp_path / "other")})
    assert not (tmp_path / "other").exists()


def test_ema_follows_the_formula(linear):
    task_class, make_config, make_data = linear
    task = task_class(make_config())
    state = task.init(jax.random.key(0))
    data, expected = make_data(True), np.asarray(state.params["weights"])
    for step in range(5):
        state, _ = task.train_step(state, {"x": next(data)["x"]}, jax.random.key(step))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["weights"])
    np.testing.assert_allclose(state.ema["weights"], expected, rtol=1e-5)


def test_resume_and_init_from_another_workdir(linear, tmp_path):
    _, first = run(linear, tmp_path / "a", steps=6)
    _, whole = run(linear, tmp_path / "whole")
    _, resumed = run(linear, tmp_path / "b", resume=str(tmp_path / "a"))
    assert tree.fingerprint(resumed) == tree.fingerprint(whole)
    task_class, make_config, make_data = linear
    config = make_config(steps=6, init_from=str(tmp_path / "a"))
    task = task_class(config)
    compiled = loop.CompiledSteps(task, loop.mesh_lib.make_mesh())
    empty = Checkpoints(tmp_path / "c")
    start = loop.initial_state(task, config, compiled, empty, make_data(True))
    assert start.step == 0
    np.testing.assert_array_equal(start.params["weights"], first.params["weights"])


def test_another_config_in_the_same_workdir_is_refused_by_field(linear, tmp_path):
    run(linear, tmp_path, steps=2)
    config = linear[1](steps=2)
    config.optim.learning_rate = 0.1
    with pytest.raises(UserError, match=r"config\.optim\.learning_rate was 0\.05, is 0\.1"):
        run(linear, tmp_path, config=config)


def test_data_that_does_not_fit_is_refused_by_name(linear, tmp_path):
    class Wide(linear[0]):
        def batch_spec(self, batch_size):
            return {"x": jax.ShapeDtypeStruct((batch_size, 5), np.float32)}

    with pytest.raises(UserError, match=r"batch\['x'\] is float32\[8, 4\], linear expects"):
        run((Wide, *linear[1:]), tmp_path)


def test_evaluation_is_written_and_the_same_each_time(linear, tmp_path):
    run(linear, tmp_path, steps=4, eval_every=2, eval_batches=3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert "eval/loss" in tags["scalars"] + tags["tensors"]
    assert "train/steps_per_second" in tags["scalars"] + tags["tensors"]


def test_manifest_names_family_config_and_parents(linear, tmp_path):
    task_class, make_config, make_data = linear
    config = make_config(steps=1)
    loop.train(task_class(config), config, tmp_path, make_data, parents={"codec": "abc"})
    about = manifest.read(tmp_path)
    assert about["family"] == "linear" and about["parents"] == {"codec": "abc"}
    assert about["config"]["optim"]["learning_rate"] == 0.05
    assert not list(tmp_path.glob(".manifest*"))


def test_profiler_traces_the_steps_asked_for(linear, tmp_path):
    run(linear, tmp_path, steps=6, profile_start=2, profile_steps=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_profile_longer_than_the_run_is_still_written(linear, tmp_path):
    run(linear, tmp_path, steps=3, profile_start=1, profile_steps=50)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
