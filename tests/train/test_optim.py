"""Schedules and optimisers against their formulas."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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


@settings(max_examples=50, deadline=None)
@given(st.floats(-1000.0, 1000.0, width=32), st.integers(0, 2**31 - 1))
@example(value=-513.0, seed=0)
def test_rounding_lands_on_a_neighbour_and_is_right_on_average(value, seed):
    count = 4096
    x = jnp.full(count, value, jnp.float32)
    rounded = np.asarray(optim.round_randomly(jax.random.key(seed), x)).astype(np.float64)
    nearest = np.float32(value).astype(ml_dtypes.bfloat16)
    # Away from 0: towards it, below a power of two, the steps are half as wide.
    away = ml_dtypes.bfloat16(np.copysign(np.inf, value))
    step = float(np.abs(np.nextafter(nearest, away) - nearest))
    found = np.unique(rounded)
    assert len(found) <= 2 and np.all(np.abs(found - value) < max(step, 2.0**-133))
    if float(nearest) == value:
        np.testing.assert_array_equal(found, [value])
    # Six standard deviations of a mean of numbers a step apart.
    assert abs(rounded.mean() - value) <= 6 * 0.5 * step / count**0.5


def test_bfloat16_parameters_follow_small_updates_only_when_rounded_at_random():
    """Steps of 1e-3 from 1 to 0.5, each a quarter of what rounding to the nearest keeps."""
    target, start = 0.5, jnp.ones(64, jnp.bfloat16)

    def end(name):
        config = optim.default_config(name="sgd", b1=0.0, learning_rate=1e-3, params=name)
        optimizer = optim.make_optimizer(config, 1000)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jnp.sign(params - target), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = start.astype(jnp.bfloat16)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, length=600)
        assert params.dtype == jnp.bfloat16
        return np.asarray(params, np.float32)

    np.testing.assert_array_equal(end("float32"), 1.0)
    # The walk's spread: 500 roundings, each of half a step of 2^-8 at most.
    assert np.all(np.abs(end("bfloat16") - target) < 0.1)
    assert abs(end("bfloat16").mean() - target) < 0.02


def test_an_unknown_type_of_parameters_is_refused():
    with pytest.raises(ValueError, match=r"optim\.params is 'int8'"):
        optim.make_optimizer(optim.default_config(params="int8"), 10)
