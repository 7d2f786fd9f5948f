"""Schedules and optimisers against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from mgen.train import optim


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", lambda t: 1.0),
        ("cosine", lambda t: 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * t / 90))),
        ("linear", lambda t: 1.0 - 0.9 * t / 90),
        ("exponential", lambda t: 0.99**t),
        ("rsqrt", lambda t: np.sqrt(10 / (t + 10))),
    ],
)
def test_schedule_follows_its_formula_after_warm_up(name, expected):
    config = optim.default_config(
        learning_rate=1.0, schedule=name, warmup=10, end_factor=0.1, gamma=0.99
    )
    schedule = optim.make_schedule(config, steps=100)
    assert float(schedule(0)) == 0.0 and float(schedule(5)) == pytest.approx(0.5)
    for count in (10, 40, 99):
        assert float(schedule(count)) == pytest.approx(expected(count - 10), rel=1e-5)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="cosine"):
        optim.make_schedule(optim.default_config(schedule="cosin"), 10)
    with pytest.raises(ValueError, match="adamw"):
        optim.make_optimizer(optim.default_config(name="adam2"), 10)


def test_weight_decay_leaves_vectors_alone_and_clip_bounds_the_norm():
    params = {"matrix": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = {"matrix": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    decayed = optim.make_optimizer(optim.default_config(weight_decay=0.1, learning_rate=1.0), 10)
    updates, _ = decayed.update(zero, decayed.init(params), params)
    assert np.allclose(updates["matrix"], -0.1) and np.allclose(updates["bias"], 0.0)
    clipped = optim.make_optimizer(
        optim.default_config(name="sgd", b1=0.0, clip=1.0, learning_rate=1.0), 10
    )
    large = {"matrix": jnp.full((2, 2), 30.0), "bias": jnp.zeros(2)}
    updates, _ = clipped.update(large, clipped.init(params), params)
    assert float(jnp.linalg.norm(updates["matrix"])) == pytest.approx(1.0, rel=1e-5)
