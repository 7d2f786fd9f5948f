"""The experiments by name: published sizes and data, tiny ones that fit a laptop, smoke sizes."""

import importlib

import jax
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.stems.task import Task

# name -> (variant, parameters, stems, samples, Hz)
EXPERIMENTS = {
    "msdm_slakh": ("", 405_497_700, 4, 2**18, 22050),
    "isdm_slakh": ("drums", 405_491_100, 1, 2**18, 22050),
    "separator_baseline": ("", 106_719_616, 4, 2**18, 22050),
    "tiny_msdm": ("", None, 4, 40960, 16000),
    "tiny_isdm": ("piano", None, 1, 40960, 16000),
    "tiny_separator": ("", None, 4, 40960, 16000),
    "tiny_bands": ("", None, 4, 40960, 16000),
}


def task_of(name, arg=""):
    return Task(importlib.import_module(f"mgen.configs.stems.{name}").get_config(arg))


def parameters(task):
    return tree.size(jax.eval_shape(task.init, jax.random.key(0)).params)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_sizes(name):
    variant, published, stems, samples, rate = EXPERIMENTS[name]
    task = task_of(name, variant)
    assert parameters(task) == published or (published is None and parameters(task) < 7e6)
    found = task.stems_config
    assert (found.stems, found.samples, found.sample_rate) == (stems, samples, rate)
    assert task.batch_spec(8)["stems"].shape == (8, stems, samples, 1)
    data = task.config.data
    assert data.view == "stems" and round(data.seconds * data.sample_rate) == samples
    large = published is not None
    assert (task.config.model.dtype == "bfloat16") == task.config.model.remat == large


def test_msdm_trains_as_published():
    config = task_of("msdm_slakh").config
    assert (config.optim.name, config.optim.schedule, config.optim.ema) == ("adam", "constant", 0)
    assert (config.optim.learning_rate, config.optim.b1, config.optim.b2) == (1e-4, 0.9, 0.99)
    assert config.data.batch_size == 8 and config.diffusion.to_dict() == dict(
        sigma_data=0.2,
        clip=1.0,
        noise_mean=-3.0,
        noise_std=1.0,
        given=0.0,
        one_level=False,
        beside_mix=0.0,
        count_missing=True,
    )


def test_independent_models_have_the_stem_that_is_named():
    for name in ("isdm_slakh", "tiny_isdm"):
        config = task_of(name, "guitar,smoke").config
        assert config.stems.names == config.data.stems == ("guitar",)
        with pytest.raises(UserError, match="'voice': expected some of bass, drums, guitar, piano"):
            task_of(name, "voice")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke_sizes_are_small(name):
    full, smoke = task_of(name), task_of(name, "smoke")
    assert parameters(smoke) < 150_000
    assert smoke.config.train.steps <= 4 < full.config.train.steps
    assert smoke.config.model.kind == full.config.model.kind
