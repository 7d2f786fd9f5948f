"""The forward process, and what a network may predict of it.

    x_t = alpha x_0 + sigma eps,  eps ~ N(0, I),  t from 0 (data) upwards                        (1)

    variance exploding    alpha = 1              sigma = t              Karras et al. 2022       (2)
    variance preserving   alpha = cos(pi t / 2)  sigma = sin(pi t / 2)  Salimans and Ho 2022     (3)
    rectified flow        alpha = 1 - t          sigma = t              Liu et al. 2023          (4)

A prediction is p = a x_0 + b eps; beside (1) that makes two equations for x_0 and eps:

    p:   x0      eps     v                           velocity dx_t/dt
    a:   1       0       -sigma                      d alpha / dt
    b:   0       1       alpha                       d sigma / dt
                         Salimans and Ho 2022                                                    (5)

    x_0 = (b x_t - sigma p) / (b alpha - a sigma)                                                (6)
    eps = (alpha p - a x_t) / (b alpha - a sigma)                                                (7)

From t to a time u of less noise with an estimate D of x_0, and to one of more noise with fresh
z ~ N(0, I), r = alpha_u / alpha:

    x_u = sigma_u / sigma x_t + alpha_u (1 - e^-h) D,  e^-h = alpha sigma_u / (alpha_u sigma)    (8)
    x_u = r x_t + sqrt(sigma_u^2 - r^2 sigma^2) z                                                (9)

h is what the step adds to log(alpha / sigma). Preconditioning (Karras et al. 2022, equation 7 and
table 1), with s^2 = sigma^2 + sigma_data^2:

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)                                           (10)
    c_skip = sigma_data^2 / s^2   c_out = sigma sigma_data / s
    c_in = 1 / s                  c_noise = ln(sigma) / 4

Times have the rank of x, or none: [B, S, 1, 1] beside x [B, S, T, C] is a noise level for each
stem, and 0 marks what is given.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mgen.typing import Array

Denoiser: TypeAlias = Callable[[Array, Array], Array]

PREDICTIONS = ("x0", "eps", "v", "velocity")
# The noise level that a network reads where there is none, as the logarithm of 0 is no input.
SIGMA_FLOOR = 1e-4


@dataclasses.dataclass(frozen=True)
class Process:
    """Equation 1.

    Attributes:
      alpha, sigma: of a time.
      time: the time at which sigma / alpha has a given value; also for infinity where alpha
        reaches 0.
    """

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    time: Callable[[Array], Array]

    def noised(self, x0: Array, eps: Array, t: Array) -> Array:
        """Equation 1."""
        return self.alpha(t) * x0 + self.sigma(t) * eps

    def coefficients(self, kind: str, t: Array) -> tuple[Array, Array]:
        """a and b of the prediction `kind`, one of `PREDICTIONS`: table 5."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        if kind == "x0":
            return jnp.ones_like(t), jnp.zeros_like(t)
        if kind == "eps":
            return jnp.zeros_like(t), jnp.ones_like(t)
        if kind == "v":
            return -sigma, alpha
        if kind == "velocity":
            return derivative(self.alpha, t), derivative(self.sigma, t)
        raise ValueError(f"prediction {kind!r}, expected one of {list(PREDICTIONS)}")

    def target(self, kind: str, x0: Array, eps: Array, t: Array) -> Array:
        """The prediction `kind` of a perfect guess."""
        a, b = self.coefficients(kind, t)
        return a * x0 + b * eps

    def convert(self, prediction: Array, x: Array, t: Array, kind: str, to: str) -> Array:
        """A prediction of one kind as another: equations 6 and 7.

        Finite also where nothing follows from it (eps from x0 at sigma = 0).
        """
        if kind == to:
            return prediction
        alpha, sigma = self.alpha(t), self.sigma(t)
        a, b = self.coefficients(kind, t)
        determinant = b * alpha - a * sigma
        determinant = jnp.where(determinant == 0, 1.0, determinant)
        x0 = (b * x - sigma * prediction) / determinant if kind != "x0" else prediction
        eps = (alpha * prediction - a * x) / determinant if kind != "eps" else prediction
        return self.target(to, x0, eps, t)

    def noise_to_signal(self, t: Array) -> Array:
        """sigma / alpha, infinity where alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def decay(self, t: Array, u: Array) -> Array:
        """e^-h from t to u; 1 between equal times."""
        return _ratio(self.sigma, u, t) * _ratio(self.alpha, t, u)

    def denoised(self, x: Array, x0: Array, t: Array, u: Array) -> Array:
        """x_u from x_t and an estimate of x_0: equation 8 (DDIM, Song et al. 2021, equation 13)."""
        return _ratio(self.sigma, u, t) * x + self.alpha(u) * (1.0 - self.decay(t, u)) * x0

    def renoised(self, x: Array, z: Array, t: Array, u: Array) -> Array:
        """x_u from x_t with the noise that lies between: equation 9."""
        r = _ratio(self.alpha, u, t)
        variance = jnp.square(self.sigma(u)) - jnp.square(r * self.sigma(t))
        return r * x + jnp.sqrt(jnp.maximum(variance, 0.0)) * z


def derivative(function: Callable[[Array], Array], t: Array) -> Array:
    """Of a function that acts element by element."""
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def _ratio(function: Callable[[Array], Array], u: Array, t: Array) -> Array:
    """function(u) / function(t), and 1 at equal times, where both may be 0."""
    below = function(t)
    return jnp.where(u == t, 1.0, function(u) / jnp.where(below == 0, 1.0, below))


VARIANCE_EXPLODING = Process(alpha=jnp.ones_like, sigma=lambda t: t, time=lambda s: s)
# The sine of the rest of the quarter turn is the cosine, and exactly 0 at t = 1.
VARIANCE_PRESERVING = Process(
    alpha=lambda t: jnp.sin(np.pi / 2 * (1.0 - t)),
    sigma=lambda t: jnp.sin(np.pi / 2 * t),
    time=lambda s: jnp.arctan(s) * (2 / np.pi),
)
RECTIFIED_FLOW = Process(
    alpha=lambda t: 1.0 - t, sigma=lambda t: t, time=lambda s: 1.0 - 1.0 / (1.0 + s)
)
PROCESSES = {
    "variance_exploding": VARIANCE_EXPLODING,
    "variance_preserving": VARIANCE_PRESERVING,
    "rectified_flow": RECTIFIED_FLOW,
}


def denoiser(predict: Denoiser, kind: str, process: Process) -> Denoiser:
    """From a network `predict(x, t)` of the prediction `kind`."""
    return lambda x, t: process.convert(predict(x, t), x, t, kind, "x0")


def preconditioned(network: Denoiser, sigma_data: float, clip: float | None = None) -> Denoiser:
    """Equation 10, for the variance exploding process.

    Args:
      network: F(x, c_noise); c_noise has the shape of the denoiser's t.
      sigma_data: standard deviation of the data.
      clip: bound of the estimate on either side; MSDM (Mariani et al. 2024) has 1.

    Returns:
      D(x, sigma); exactly x where sigma is 0 (of a network that is finite at the noise level
      `SIGMA_FLOOR`).
    """

    def denoise(x: Array, sigma: Array) -> Array:
        total = jnp.sqrt(jnp.square(sigma) + sigma_data**2)
        c_skip, c_out = (sigma_data / total) ** 2, sigma * sigma_data / total
        c_noise = jnp.log(jnp.maximum(sigma, SIGMA_FLOOR)) / 4
        x0 = c_skip * x + c_out * network(x / total, c_noise)
        return x0 if clip is None else jnp.clip(x0, -clip, clip)

    return denoise
