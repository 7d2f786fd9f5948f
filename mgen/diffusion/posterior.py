"""Conditioning a trained prior on what is known, without training: wrappers of its denoiser D and
constraints on x (see `mgen.diffusion.samplers.sample`), so that every sampler runs them.

D is (x + sigma^2 score) / alpha, so a likelihood of what is known adds to it:

    D' = D + sigma^2 / alpha d log p(y | x_t) / d x_t                                            (1)

In separation x is [B, S, T, C], and the mix y = sum_s x_s keeps the axis: [B, 1, T, C]. Elements
that are measured together share their noise level.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mgen.diffusion.process import VARIANCE_EXPLODING, Denoiser, Process
from mgen.diffusion.trajectory import Constraint, noise_source
from mgen.typing import Array, Bool, Float

# gamma / sigma of MSDM's separation: 0.75 in its code, which divides by 2 gamma^2.
MSDM_GAMMA = 0.75 * 2**0.5


def inpainting(
    known: Float[Array, "B ..."],
    mask: Bool[Array, "B ..."],
    noise: Any,
    steps: int,
    process: Process = VARIANCE_EXPLODING,
) -> Constraint:
    """x where `mask` is True is what is `known`, noised to the time of x:

        x <- m (alpha y + sigma eps_i) + (1 - m) x                                               (2)

    (Score SDEs, Song et al. 2021, appendix I.2; with `RungeKutta.repeats` RePaint and the
    imputation of MSDM.)

    Args:
      known: of the shape of x.
      mask: broadcastable to x.
      noise: eps_i of each step i and of the result, shared by the repeats of a step: as in
        `sample`, of other keys [B], or an array [steps + 1, 1, *x.shape].
      steps: of the sampler.
    """
    eps = noise_source(noise, known, (steps + 1, 1))
    return lambda x, t, i: jnp.where(mask, process.noised(known, eps(i, 0), t), x)


def dirac_separation(
    denoise: Denoiser,
    mix: Float[Array, "B 1 T C"],
    derived: int | None = 0,
    process: Process = VARIANCE_EXPLODING,
) -> tuple[Denoiser, Constraint]:
    """Stems that sum to `mix` exactly: their denoiser, and the constraint that goes with it. Stem k
    follows from the others (MSDM, Mariani et al. 2024, algorithm 1; alpha > 0):

        x_k <- alpha y - sum_{j != k} x_j,  D'_j = D_j + x_k / alpha - D_k                       (3)

    In d = (x - D) / sigma that is d_j - d_k. MSDM's code derives the first stem, the paper the
    last; with None both are averages over all k, which favour none:

        x_j <- x_j + (alpha y - sum x) / S,  D'_j = D_j + (y - sum D) / S                        (4)

    Without fresh noise a derived stem loses variance: sample with `churn` and `repeats`.
    """

    def completed(x: Array, total: Array) -> Array:
        """`x` with a sum over stems of `total`."""
        missing = total - jnp.sum(x, axis=1, keepdims=True)
        if derived is None:
            return x + missing / x.shape[1]
        return x.at[:, derived].add(missing[:, 0])

    def constrain(x: Array, t: Array, i: Array) -> Array:
        return completed(x, process.alpha(t) * mix)

    def posterior(x: Array, t: Array) -> Array:
        x0 = denoise(x, t)
        if derived is not None:
            own = slice(derived, derived + 1)
            x0 = x0 + x[:, own] / process.alpha(t) - x0[:, own]
        return completed(x0, mix)

    return posterior, constrain


def gaussian_separation(
    denoise: Denoiser,
    mix: Float[Array, "B 1 T C"],
    gamma: Callable[[Array], Array],
    process: Process = VARIANCE_EXPLODING,
) -> Denoiser:
    """Stems that sum to `mix` up to gamma, of the likelihood N(alpha y; sum_s x_s, gamma(t)^2):

        D'_j = D_j + sigma^2 / alpha (alpha y - sum x) / gamma^2                                 (5)

    In d that is d_j - sigma / gamma^2 (y - sum x) (MSDM, Mariani et al. 2024). The released code
    has 2 gamma^2; its choice is gamma = `MSDM_GAMMA` sigma. A step to sigma' multiplies an error
    of the sum by up to 1 - (1 - sigma' / sigma) (1 + S sigma^2 / gamma^2): where that is below -1,
    as in MSDM's last step, it must not be repeated often, and the noise there must be small.
    """

    def posterior(x: Array, t: Array) -> Array:
        missing = process.alpha(t) * mix - jnp.sum(x, axis=1, keepdims=True)
        return denoise(x, t) + _gain(process, t) * missing / jnp.square(gamma(t))

    return posterior


def measured(
    denoise: Denoiser,
    measure: Callable[[Array], Array],
    y: Float[Array, "B ..."],
    variance: Callable[[Array], Array | float],
    process: Process = VARIANCE_EXPLODING,
) -> Denoiser:
    """Of the likelihood N(y; A D(x), variance(t) I), by a gradient through the denoiser:

        D' = D + sigma^2 / alpha (dD/dx)^T A^T (y - A D) / variance                              (6)

    DPS (Chung et al. 2023) with a constant variance, that of the measurement; PiGDM (Song et al.
    2023) with `pigdm_variance`.

    Args:
      measure: A, any differentiable function of x for DPS, to something of x's rank.
    """

    def posterior(x: Array, t: Array) -> Array:
        def forward(x: Array) -> tuple[Array, Array]:
            x0 = denoise(x, t)
            return measure(x0), x0

        expected, pull, x0 = jax.vjp(forward, x, has_aux=True)
        (gradient,) = pull((y - expected) / variance(t))
        return x0 + _gain(process, t) * gradient

    return posterior


def pigdm_variance(
    sigma_data: float,
    std: Array | float = 0.0,
    gram: Array | float = 1.0,
    process: Process = VARIANCE_EXPLODING,
) -> Callable[[Array], Array]:
    """Of y around A D(x): what a Gaussian prior of standard deviation `sigma_data` leaves open at a
    time, r^2 = sigma^2 sigma_data^2 / (sigma^2 + alpha^2 sigma_data^2), seen through A, and std^2
    of the measurement (Song et al. 2023).

    Args:
      gram: A A^T = gram I: 1 of a mask, S of the sum of S stems; broadcastable to y.
    """

    def variance(t: Array) -> Array:
        noise, data = jnp.square(process.sigma(t)), sigma_data**2
        return gram * noise * data / (noise + jnp.square(process.alpha(t)) * data) + std**2

    return variance


def _gain(process: Process, t: Array) -> Array:
    """sigma^2 / alpha; 0 where alpha is 0 and x tells nothing about y."""
    alpha = process.alpha(t)
    known = alpha > 0
    return jnp.where(known, jnp.square(process.sigma(t)) / jnp.where(known, alpha, 1.0), 0.0)
