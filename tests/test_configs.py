"""Every shipped config: locked, refuses what it does not know, and its step has a shape."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.train.checkpoint import make_task

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.name != "__init__.py")


def load(path, arg=""):
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg), module.__doc__


@pytest.fixture(params=CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def path(request):
    return request.param


@pytest.mark.parametrize("arg", ["", "smoke"])
def test_step_of_every_config_has_a_shape(path, arg):
    """At full size too: nothing is computed."""
    config, _ = load(path, arg)
    assert config.is_locked
    task = make_task(config)
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = task.batch_spec(config.data.batch_size)
    after, metrics = jax.eval_shape(task.train_step, state, batch, jax.random.key(0))
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert all(jax.tree.leaves(same))
    assert metrics["loss"].shape == () and metrics["loss"].dtype == np.float32
    if arg == "smoke":  # sampling at full size is traced for seconds, in the families' tests
        assert jax.tree.leaves(jax.eval_shape(task.sample, state, batch, jax.random.key(0)))
        assert task.sample_steps >= 1


def test_a_local_run_is_the_same_model_in_few_and_small_steps(path):
    (config, _), (local, _) = load(path), load(path, "runlocal")
    assert local.is_locked and local.data.batch_size == 2 and local.train.steps == 20
    assert local.model == config.model


def test_docstring_holds_the_command_and_the_hardware(path):
    _, doc = load(path)
    assert f"--config={path.parent.name}/{path.stem}" in doc and "Hardware:" in doc


def test_unknown_keys_and_variants_are_refused(path):
    config, _ = load(path)
    with pytest.raises(AttributeError):
        config.model.unknown = 1
    with pytest.raises((UserError, ValueError), match="huge"):
        load(path, "huge")
