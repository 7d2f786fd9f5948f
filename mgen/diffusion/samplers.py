"""Sampling: from noise to data along given times, by any solver, for any process and denoiser."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mgen.diffusion.adaptive import Dopri5
from mgen.diffusion.process import VARIANCE_EXPLODING, Denoiser, Process
from mgen.diffusion.solvers import ADPM2, DDIM, DPMSolver, PingPong, RungeKutta
from mgen.diffusion.trajectory import Constraint, Noise, Problem, Sampler, draw_noise, noise_source
from mgen.errors import UserError
from mgen.typing import Array, Float, Key, ndarray

SAMPLERS: dict[str, Any] = {
    "euler": RungeKutta("euler"),
    "heun": RungeKutta("heun"),
    "midpoint": RungeKutta("midpoint"),
    "rk4": RungeKutta("rk4"),
    "dopri5": Dopri5(),
    "ddim": DDIM(),
    "ancestral": DDIM(eta=1.0),
    "adpm2": ADPM2(),
    "dpmpp_2m": DPMSolver(order=2),
    "dpmpp_2m_sde": DPMSolver(order=2, eta=1.0),
    "dpmpp_3m_sde": DPMSolver(order=3, eta=1.0),
    "ping_pong": PingPong(),
}


def named(name: str, **options: Any) -> Sampler:
    """The sampler of `SAMPLERS`, with other values of its fields.

    Raises:
      UserError: a name or a field that there is not.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler {name!r}, expected one of {sorted(SAMPLERS)}")
    fields = {field.name for field in dataclasses.fields(SAMPLERS[name])}
    if unknown := set(options) - fields:
        raise UserError(f"sampler {name}: {sorted(unknown)}, expected some of {sorted(fields)}")
    return dataclasses.replace(SAMPLERS[name], **options)


def initial_noise(
    keys: Key, shape: tuple[int, ...], t: Float[Array, ""] | float, process: Process
) -> Float[Array, "B ..."]:
    """x [B, *shape] at a time t of which nothing of the data is left: sigma(t) z, with z from keys
    [B] that may go on to `sample`."""
    last = jnp.iinfo(jnp.uint32).max  # no step has this number
    keys = jax.vmap(lambda key: jax.random.fold_in(key, jnp.uint32(last)))(keys)
    return process.sigma(jnp.asarray(t)) * draw_noise(keys, shape)


def sample(
    denoise: Denoiser,
    x: Float[Array, "B ..."],
    times: Float[Array, "N_plus_1 ..."] | ndarray,
    *,
    sampler: Sampler,
    process: Process = VARIANCE_EXPLODING,
    noise: Key | Float[Array, "N J B ..."] | Noise | None = None,
    constrain: Constraint | None = None,
) -> Float[Array, "B ..."]:
    """x at the last time from x at the first one. Call it inside `jax.jit`, with the parameters
    that `denoise` closes over among the arguments of the jitted function.

    Args:
      denoise: estimate of x_0 from x and t; t comes with the rank of x.
      x: in the precision in which the sampler computes.
      times: falling, [N + 1] or [N + 1, ...] with the rest broadcastable to x: elements whose time
        is 0 all along stay as they are, and the others are drawn given these.
      noise: keys [B], one an example: draw j of step i is from fold_in(fold_in(key, i), j); or the
        draws themselves, [N, J, *x.shape] with J = sampler.draws; or a function of (i, j), by which
        windows that overlap can share theirs.
      constrain: (x, t, i) to x, before each evaluation of `denoise` in step i and, with i = N, of
        the result.

    Raises:
      ValueError: no noise for a sampler that draws some, or noise or times of another shape.
    """
    times = jnp.asarray(times, x.dtype)
    if times.ndim == 1:
        times = times.reshape(-1, *(1,) * x.ndim)
    if times.ndim != x.ndim + 1 or times.shape[0] < 2:
        raise ValueError(f"times {times.shape} beside x {x.shape}, expected [N + 1] with N >= 1")
    steps = times.shape[0] - 1
    if noise is None:
        if sampler.draws:
            raise ValueError(f"{sampler} draws noise, expected keys, an array or a function")
        noise = _none
    source = noise_source(noise, x, (steps, sampler.draws))
    problem = Problem(denoise, process, times, source, constrain or _free)
    x = sampler.solve(problem, x)
    return problem.constrain(x, times[-1], jnp.asarray(steps))


def _none(i: Array, j: Array | int) -> Array:
    raise ValueError("noise of a deterministic sampler")


def _free(x: Array, t: Array, i: Array) -> Array:
    return x
