"""Sampling times."""

import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion.process import RECTIFIED_FLOW
from mgen.diffusion.schedules import exponential, karras, linear, shifted
from mgen.errors import UserError


@pytest.mark.parametrize(
    ("times", "scale"),
    [
        (karras(9, 1e-3, 20.0), lambda t: t ** (1 / 7)),
        (karras(9, 1e-3, 20.0, rho=3.0), lambda t: t ** (1 / 3)),
        (exponential(9, 1e-3, 20.0), np.log),
    ],
    ids=["karras", "rho", "exponential"],
)
def test_schedules_that_jump_to_zero(times, scale):
    """N + 1 times from t_max by t_min to 0, and equal steps of their own scale (float64)."""
    assert times.shape == (10,) and times[-1] == 0
    np.testing.assert_allclose(times[[0, -2]], [20.0, 1e-3], rtol=1e-12)
    steps = np.diff(scale(times[:-1]))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    assert steps[0] < 0


def test_linear():
    np.testing.assert_allclose(linear(4), [1, 0.75, 0.5, 0.25, 0], rtol=1e-12)
    np.testing.assert_allclose(linear(2, 0.8), [0.8, 0.4, 0], rtol=1e-12)


def test_a_shift_multiplies_the_noise_to_signal_ratio():
    times = linear(8)
    found = shifted(times, 3.0)
    assert found[0] == 1 and found[-1] == 0
    ratio = RECTIFIED_FLOW.noise_to_signal
    inner = jnp.asarray(found[1:-1])
    np.testing.assert_allclose(ratio(inner), 3 * ratio(jnp.asarray(times[1:-1])), rtol=1e-5)
    np.testing.assert_allclose(shifted(times, 1.0), times, rtol=1e-12)


def test_one_step_goes_straight_to_zero():
    np.testing.assert_allclose(karras(1, 0.1, 20.0), [20.0, 0.0])
    np.testing.assert_allclose(exponential(1, 0.1, 20.0), [20.0, 0.0])


def test_bad_schedules_are_refused():
    for make in (lambda: karras(0, 0.1, 1.0), lambda: exponential(3, 2.0, 1.0), lambda: linear(0)):
        with pytest.raises(UserError, match="schedule of"):
            make()
    with pytest.raises(UserError, match=r"t_min 0\.0"):
        exponential(3, 0.0, 1.0)  # its logarithm is not finite
