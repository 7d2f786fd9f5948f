"""Karras times, preconditioning and samplers against diffusers' EDM schedulers.

Tolerance 1e-5 of values of order 1: float32, eight steps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion.process import preconditioned
from mgen.diffusion.samplers import named, sample
from mgen.diffusion.schedules import exponential, karras

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.parity

STEPS, SIGMAS = 8, dict(sigma_min=0.01, sigma_max=5.0, sigma_data=0.3)
TIMES = karras(STEPS, 0.01, 5.0)
FIRST = 5 * np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
NOISE = np.random.default_rng(1).standard_normal((STEPS, 1, 2, 3)).astype(np.float32)


def network(x, c_noise):
    """F of equation 10, in either library."""
    square = x * x
    return (x - square * x / 3 + c_noise) / (1 + square)


def theirs(scheduler):
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(FIRST)
    for t in scheduler.timesteps:
        # The time step that it hands to networks is c_noise.
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x).prev_sample
    return x.numpy()


@functools.partial(jax.jit, static_argnums=0)
def ours(sampler, noise):
    denoise = preconditioned(network, 0.3)
    return sample(denoise, jnp.asarray(FIRST), TIMES, sampler=sampler, noise=noise)


@pytest.fixture
def given_noise(monkeypatch):
    """Their random numbers, step by step, are `NOISE`."""
    draws = iter(torch.from_numpy(NOISE[:, 0]))
    for name in ("edm_euler", "edm_dpmsolver_multistep"):
        module = f"diffusers.schedulers.scheduling_{name}.randn_tensor"
        monkeypatch.setattr(module, lambda *args, **options: next(draws))


@pytest.mark.parametrize(("name", "make"), [("karras", karras), ("exponential", exponential)])
def test_times(name, make):
    scheduler = diffusers.EDMEulerScheduler(sigma_schedule=name, **SIGMAS)
    scheduler.set_timesteps(STEPS)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), make(STEPS, 0.01, 5.0), rtol=1e-5)


def test_euler():
    expected = theirs(diffusers.EDMEulerScheduler(**SIGMAS))
    np.testing.assert_allclose(ours(named("euler"), None), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "eta", "kind"), [(2, 0.0, "midpoint"), (2, 1.0, "midpoint"), (3, 0.0, "heun")]
)
def test_dpm_solver(order, eta, kind, given_noise):
    """Theirs has no SDE of order 3; "heun" is how our order 3 makes its second step."""
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        solver_order=order,
        solver_type=kind,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        # As k-diffusion's and ours: full order until the last step.
        lower_order_final=False,
        **SIGMAS,
    )
    sampler = named("dpmpp_2m", order=order, eta=eta)
    found = ours(sampler, jnp.asarray(NOISE) if eta else None)
    np.testing.assert_allclose(found, theirs(scheduler), atol=1e-5)
