"""Samplers against exact solutions, published algorithms written out, and each other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion.process import (
    PROCESSES,
    RECTIFIED_FLOW,
    VARIANCE_EXPLODING,
    VARIANCE_PRESERVING,
)
from mgen.diffusion.samplers import SAMPLERS, initial_noise, named, sample
from mgen.diffusion.schedules import karras, linear
from mgen.diffusion.trajectory import draw_noise
from mgen.errors import UserError

# Of a time from which on the data is less than the noise, and one close to it.
ENDS = {"variance_exploding": (10.0, 0.1), "variance_preserving": (0.9, 0.1)}
ENDS["rectified_flow"] = ENDS["variance_preserving"]
CHURNED = named("heun", churn=20.0, repeats=2)


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("ddim", 1), ("heun", 2), ("midpoint", 2), ("dpmpp_2m", 2), ("rk4", 4)],
)
@pytest.mark.parametrize("process", PROCESSES)
def test_order_of_convergence(process, name, order, gaussian):
    """Twice the steps, 2^order times less error against the exact flow (float64). The measured
    order may be 0.2 below: 40 steps are not infinitely many."""
    (begin, end), process = ENDS[process], PROCESSES[process]
    with jax.enable_x64(True):
        x = jnp.asarray([[-2.0, 0.7, 1.5]]) * begin
        exact = gaussian.flow(process, x, begin, end)

        def error(steps):
            times = karras(steps + 1, end, begin)[:-1]
            found = solve(gaussian.ideal(process), x, times, SAMPLERS[name], process)
            return np.abs(found - exact).max()

        few, many = error(40), error(80)
    assert np.log2(few / many) > order - 0.2
    assert few < 0.05


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def solve(denoise, x, times, sampler, process=VARIANCE_EXPLODING, noise=None):
    return sample(denoise, x, times, sampler=sampler, process=process, noise=noise)


@pytest.mark.parametrize("process", PROCESSES)
def test_adaptive_steps_reach_their_tolerance(process, gaussian):
    """rtol 1e-7 a step leaves less than 1e-5 after a few dozen (float64)."""
    (begin, end), process = ENDS[process], PROCESSES[process]
    with jax.enable_x64(True):
        x = jnp.asarray([[-2.0, 0.7, 1.5], [0.1, 0.2, 0.3]]) * begin
        sampler = named("dopri5", rtol=1e-7, atol=1e-7)
        # The last step, an Euler step, is of no length.
        times = np.asarray([begin, 0.9 * begin, end, end])
        found = solve(gaussian.ideal(process), x, times, sampler, process)
    np.testing.assert_allclose(found, gaussian.flow(process, x, begin, end), atol=1e-5)


def test_adaptive_steps_are_an_examples_own_and_bounded(gaussian):
    """A hard example takes more attempts; its easy batch mate, at its mean all along, does not
    notice (float32, vectorised otherwise). What has not arrived in time is no number."""
    x = jnp.asarray([[40.0], [gaussian.mean]])
    denoise = gaussian.ideal(VARIANCE_EXPLODING)
    times = karras(4, 0.01, 20.0)
    both = solve(denoise, x, times, named("dopri5"))
    for row in range(2):
        alone = solve(denoise, x[row : row + 1], times, named("dopri5"))
        np.testing.assert_allclose(alone[0], both[row], rtol=1e-6)
    late = solve(denoise, x, times, named("dopri5", rtol=1e-6, atol=1e-6, max_steps=14))
    assert np.isnan(late[0]).all() and np.isfinite(late[1]).all()


# What makes the bias of a first-order sampler less than its standard error.
STEPS = dict.fromkeys(SAMPLERS, 64) | dict(euler=512, ddim=512, ancestral=512, churned=64)
ALL = {name: sampler for name, sampler in SAMPLERS.items() if name != "ping_pong"}
ALL["churned"] = CHURNED


def assert_moments(values, mean, variance, fourth=3.0):
    """Within four standard errors; `fourth` is the standardised fourth moment."""
    count = len(values)
    np.testing.assert_allclose(np.mean(values), mean, atol=4 * np.sqrt(variance / count))
    error = 4 * np.sqrt((fourth - 1) / count)
    np.testing.assert_allclose(np.var(values) / variance, 1, atol=error)


@pytest.mark.parametrize("name", ALL)
def test_moments_of_normal_data(name, gaussian):
    """2048 samples of a rectified flow from a start with the exact distribution."""
    x, keys = gaussian.start(RECTIFIED_FLOW, 0.9, 2048)
    times = karras(STEPS[name], 0.01, 0.9)
    denoise = gaussian.ideal(RECTIFIED_FLOW)
    found = solve(denoise, x, times, ALL[name], RECTIFIED_FLOW, keys)
    assert_moments(found, gaussian.mean, gaussian.std**2)


WEIGHTS, MEANS, STDS = np.asarray([0.3, 0.7]), np.asarray([-1.0, 0.8]), np.asarray([0.2, 0.3])


def mixture(x, t):
    """E[x_0 | x_t] of two normal distributions."""
    variances = [std**2 + t**2 for std in STDS]
    logs = [
        np.log(weight) - (x - mean) ** 2 / variance / 2 - jnp.log(variance) / 2
        for weight, mean, variance in zip(WEIGHTS, MEANS, variances)
    ]
    shares = jax.nn.softmax(jnp.stack(jnp.broadcast_arrays(*logs)), axis=0)
    means = [
        mean + std**2 / variance * (x - mean) for mean, std, variance in zip(MEANS, STDS, variances)
    ]
    return sum(share * mean for share, mean in zip(shares, means))


@pytest.mark.parametrize("name", ALL)
def test_moments_of_a_mixture(name, gaussian):
    """And the share of each component, from 2048 exact draws of x_t."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(2, size=2048, p=WEIGHTS)
    x = MEANS[chosen] + STDS[chosen] * rng.standard_normal(2048) + 10 * rng.standard_normal(2048)
    times = karras(STEPS[name], 0.01, 10.0)
    x, keys = jnp.asarray(x, jnp.float32), gaussian.keys(2048)
    found = np.asarray(solve(mixture, x, times, ALL[name], noise=keys))
    mean = WEIGHTS @ MEANS
    off = MEANS - mean
    variance = WEIGHTS @ (STDS**2 + off**2)
    fourth = WEIGHTS @ (off**4 + 6 * off**2 * STDS**2 + 3 * STDS**4) / variance**2
    assert_moments(found, mean, variance, fourth)
    np.testing.assert_allclose(np.mean(found < 0), 0.3, atol=4 * np.sqrt(0.21 / 2048))


def test_ping_pong_of_a_consistency_function_is_exact(gaussian):
    """With the end of the flow in place of the conditional mean, 3 steps have the exact moments."""
    for process in (VARIANCE_EXPLODING, RECTIFIED_FLOW):

        def end_of_flow(x, t, process=process):
            alpha, sigma = process.alpha(t), process.sigma(t)
            std = jnp.sqrt((alpha * gaussian.std) ** 2 + sigma**2)
            return gaussian.mean + (x - alpha * gaussian.mean) / std * gaussian.std

        x, keys = gaussian.start(process, 0.9, 2048)
        found = solve(end_of_flow, x, linear(3, 0.9), SAMPLERS["ping_pong"], process, keys)
        assert_moments(found, gaussian.mean, gaussian.std**2)


@pytest.mark.parametrize("name", ["heun", "ancestral", "dpmpp_3m_sde", "dopri5"])
def test_the_last_step_to_zero_is_the_estimate(name, gaussian):
    """One step from pure noise, where alpha is 0 in two of the processes."""
    for process in (VARIANCE_EXPLODING, RECTIFIED_FLOW):
        x, keys = gaussian.start(process, 1.0, 3)
        found = solve(gaussian.ideal(process), x, linear(1), SAMPLERS[name], process, keys)
        expected = gaussian.ideal(process)(x, jnp.asarray(1.0))
        np.testing.assert_allclose(found, expected, atol=1e-6)


SAME_IN_EACH = ["ddim", "ancestral", "adpm2", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"]


@pytest.mark.parametrize("name", [*SAME_IN_EACH, "ping_pong", "euler"])
@pytest.mark.parametrize("process", [VARIANCE_PRESERVING, RECTIFIED_FLOW], ids=["vp", "flow"])
def test_processes_differ_by_a_change_of_variables(process, name):
    """x_t of any process is alpha times x of the variance exploding one at sigma / alpha. Float32
    over six steps. (Euler steps agree on straight paths; with churn too.)"""
    sampler = SAMPLERS[name]
    if name == "euler":
        if process is not RECTIFIED_FLOW:
            return
        sampler = named("euler", churn=1.0, churn_min=0.1, churn_max=3.0, repeats=2)
    rng = np.random.default_rng(0)
    x = 5 * jnp.asarray(rng.standard_normal((2, 3)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal((6, sampler.draws, 2, 3)), jnp.float32)
    levels = jnp.asarray(karras(6, 0.05, 5.0), jnp.float32)

    def other(x, t):
        return mixture(x / process.alpha(t), process.noise_to_signal(t))

    expected = solve(mixture, x, levels, sampler, noise=noise)
    times = process.time(levels)
    found = solve(other, x * process.alpha(times[0]), times, sampler, process, noise)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("tableau", "repeats", "low", "high"), [("euler", 2, 0, np.inf), ("heun", 1, 0.1, 2.0)]
)
def test_churn_and_repeats_are_the_published_loops(tableau, repeats, low, high):
    """MSDM's sampler and EDM's algorithm 2, written out step by step."""
    options = dict(churn=3.0, churn_min=low, churn_max=high, churn_noise=1.1, repeats=repeats)
    rng = np.random.default_rng(0)
    levels = karras(8, 0.05, 5.0)
    noise = rng.standard_normal((8, 2 * repeats, 2, 3))
    x = 5 * rng.standard_normal((2, 3))
    with jax.enable_x64(True):
        sampler = named(tableau, **options)
        found = solve(mixture, jnp.asarray(x), levels, sampler, noise=jnp.asarray(noise))

        def slope(x, level):
            return (x - np.asarray(mixture(x, level))) / level

        for i, (level, below) in enumerate(itertools.pairwise(levels)):
            for r in range(repeats):
                if r:
                    x = x + np.sqrt(level**2 - below**2) * noise[i, 2 * r]
                gamma = min(3.0 / 8, np.sqrt(2) - 1) if low <= level <= high else 0.0
                hat = level * (1 + gamma)
                x = x + np.sqrt(hat**2 - level**2) * 1.1 * noise[i, 2 * r + 1]
                direction = slope(x, hat)
                end = x + (below - hat) * direction
                if tableau == "heun" and below > 0:
                    end = x + (below - hat) * (direction + slope(end, below)) / 2
                x = end
    np.testing.assert_allclose(found, x, atol=1e-9)


def test_stochastic_ddim_is_equation_12_of_the_paper():
    """In its own notation: alpha bar for the square of alpha."""
    process, sampler, t, u, eta = VARIANCE_PRESERVING, named("ddim", eta=0.6), 0.8, 0.5, 0.6
    x, z = jnp.asarray([[1.0, -0.4]]), np.asarray([[0.3, 1.2]])
    found = solve(
        lambda x, t: 0.1 * x, x, jnp.asarray([t, u]), sampler, process, jnp.asarray(z)[None, None]
    )
    bar, bar_u = np.cos(np.pi / 2 * t) ** 2, np.cos(np.pi / 2 * u) ** 2
    eps = (x - np.sqrt(bar) * 0.1 * x) / np.sqrt(1 - bar)
    spread = eta * np.sqrt((1 - bar_u) / (1 - bar)) * np.sqrt(1 - bar / bar_u)
    expected = np.sqrt(bar_u) * 0.1 * x + np.sqrt(1 - bar_u - spread**2) * eps + spread * z
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_adpm2_is_the_step_of_audio_diffusion():
    """Ancestral: down to sigma_down by the slope half way, up by fresh noise."""
    level, below, z = 2.0, 0.5, np.asarray([[0.3, 1.2]])
    x = np.asarray([[1.0, -0.4]])
    times, noise = jnp.asarray([level, below]), jnp.asarray(z)[None, None]
    found = solve(mixture, jnp.asarray(x), times, named("adpm2", rho=2.0), noise=noise)
    up = np.sqrt(below**2 * (level**2 - below**2) / level**2)
    down = np.sqrt(below**2 - up**2)
    half = ((np.sqrt(level) + np.sqrt(down)) / 2) ** 2
    inner = x + (half - level) * (x - mixture(x, level)) / level
    expected = x + (down - level) * (inner - mixture(inner, half)) / half + up * z
    np.testing.assert_allclose(found, expected, rtol=1e-5)


STEPPERS = {name: sampler for name, sampler in SAMPLERS.items() if name != "dopri5"}
STEPPERS["churned"] = CHURNED
COVARIANCE = np.asarray([[0.09, 0.06], [0.06, 0.0625]])


def pair(x, t):
    """E[x_0 | x_t] of two correlated numbers [B, 2] with a noise level t [1, 2] of each."""
    noise = jnp.diag(t[0] ** 2)
    gain = COVARIANCE @ jnp.linalg.inv(COVARIANCE + noise)
    return jnp.einsum("ij,bj->bi", gain, x)


@pytest.mark.parametrize("name", STEPPERS)
def test_what_is_given_stays_and_conditions_the_rest(name, gaussian):
    """One element at noise level 0 all along: the other is drawn from its conditional distribution
    (four standard errors of 2048), bit for bit beside the given one."""
    given = 0.2
    times = karras(STEPS[name], 0.01, 5.0)
    times = np.stack([np.zeros_like(times), times], axis=-1)[:, None]
    x = jnp.stack([jnp.full(2048, given), 5 * draw_noise(gaussian.keys(2048), ())], axis=1)
    found = solve(pair, x, times, STEPPERS[name], noise=gaussian.keys(2048, 1))
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    if name != "ping_pong":
        mean = given * COVARIANCE[0, 1] / COVARIANCE[0, 0]
        variance = COVARIANCE[1, 1] - COVARIANCE[0, 1] ** 2 / COVARIANCE[0, 0]
        assert_moments(found[:, 1], mean, variance)


@pytest.mark.parametrize("name", ["churned", "dpmpp_2m_sde"])
def test_noise_is_an_examples_own_and_can_be_given(name, gaussian):
    """The same draws from keys, an array or a function make the same x; an example does not see
    its batch mates."""
    sampler, keys = STEPPERS[name], gaussian.keys(3)
    x = initial_noise(keys, (5,), 5.0, VARIANCE_EXPLODING)
    times = karras(6, 0.05, 5.0)
    found = solve(mixture, x, times, sampler, noise=keys)

    def draw(i, j, key):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), j), (5,))

    for axis in (2, 1, 0):  # of keys, draws and steps
        draw = jax.vmap(draw, in_axes=tuple(0 if a == axis else None for a in range(3)))
    given = jax.jit(draw)(jnp.arange(6), jnp.arange(sampler.draws), keys)
    expected = solve(mixture, x, times, sampler, noise=given)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    called = sample(mixture, x, times, sampler=sampler, noise=lambda i, j: given[i, j])
    np.testing.assert_allclose(called, expected, atol=1e-6)
    assert np.abs(solve(mixture, x, times, sampler, noise=gaussian.keys(3, 9)) - found).max() > 0.1
    rows = np.asarray([2, 0])
    alone = solve(mixture, x[rows], times, sampler, noise=keys[rows])
    np.testing.assert_allclose(alone, found[rows], atol=1e-6)


def test_initial_noise_has_the_standard_deviation_of_its_time(gaussian):
    keys = gaussian.keys(2048)
    x = np.asarray(initial_noise(keys, (2,), 0.3, VARIANCE_PRESERVING))
    assert_moments(x.ravel(), 0.0, np.sin(0.15 * np.pi) ** 2)
    np.testing.assert_array_equal(initial_noise(keys[3:5], (2,), 0.3, VARIANCE_PRESERVING), x[3:5])
    first = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    assert not np.any(np.isclose(x, draw_noise(first, (2,))))


@pytest.mark.parametrize("name", ["churned", "rk4", "dpmpp_2m", "adpm2", "dopri5"])
def test_constraints_hold_at_every_evaluation_and_of_the_result(name, gaussian):
    """x_0 of the first element is put in place of it; a denoiser that sees anything else, or the
    time 0, returns no number. The constraint of the result has the number of steps."""

    def constrain(x, t, i):
        return x.at[:, 0].set(7.0 + t[:, 0] + jnp.where(t[:, 0] == 0, i, 0))

    def denoise(x, t):
        right = (x[:, :1] == 7.0 + t) & (t > 0)
        return jnp.where(right, mixture(x, t), jnp.nan)

    x, keys = gaussian.start(VARIANCE_EXPLODING, 5.0, 1, (2,))
    options = dict(sampler=ALL[name], noise=keys, constrain=constrain)
    found = sample(denoise, x, karras(4, 0.05, 5.0), **options)
    assert found[0, 0] == 7 + 4 and np.isfinite(found[0, 1])
    loose = sample(denoise, x, karras(4, 0.05, 5.0), **(options | dict(constrain=None)))
    assert np.isnan(loose[0, 1])


def test_what_does_not_fit_is_refused(gaussian):
    x, times, keys = jnp.zeros((2, 3)), linear(4), gaussian.keys(3)
    for arguments, message in [
        (dict(sampler=SAMPLERS["ancestral"]), "draws noise"),
        (dict(sampler=SAMPLERS["ancestral"], noise=keys), r"\(3,\), expected \(2,\)"),
        (dict(sampler=SAMPLERS["ancestral"], noise=jnp.zeros((3, 1, 2, 3))), "expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample(mixture, x, times, **arguments)
    for wrong in (times[:1], np.zeros((5, 2))):
        with pytest.raises(ValueError, match="times"):
            sample(mixture, x, wrong, sampler=SAMPLERS["euler"])
    with pytest.raises(ValueError, match="dopri5"):
        sample(mixture, x, np.zeros((5, 2, 3)), sampler=SAMPLERS["dopri5"])
    for call, message in [
        (lambda: named("eular"), "sampler 'eular'"),
        (lambda: named("ddim", eat=1.0), "eat"),
        (lambda: named("euler", tableau="rk5"), "rk5"),
        (lambda: named("dpmpp_2m", order=4), "order 4"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
