"""Training: at which times, with which weights, and the loss itself."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mgen.diffusion.process import VARIANCE_EXPLODING, Denoiser, Process
from mgen.typing import Array, Bool, Float, Key


class Times(Protocol):
    """Distribution of the training times."""

    def quantile(self, u: Array) -> Array:
        """The time below which the share u of all draws lies."""


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """log t ~ N(mean, std^2): EDM has -1.2 and 1.2, MSDM -3 and 1."""

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Array) -> Array:
        return jnp.exp(self.mean + self.std * jax.scipy.special.ndtri(u))


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """log(t / (1 - t)) ~ N(mean, std^2) (SD3, Esser et al. 2024, equation 19)."""

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Array) -> Array:
        return jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(u))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Between low and high."""

    low: float = 0.0
    high: float = 1.0

    def quantile(self, u: Array) -> Array:
        return self.low + (self.high - self.low) * u


@dataclasses.dataclass(frozen=True)
class ShiftedCosine:
    """Times of the variance preserving process at which log(alpha^2 / sigma^2) is that of a uniform
    time plus 2 log(shift) (Hoogeboom et al. 2023): a shift below 1 gives more noise, as
    long or high-rate signals need."""

    shift: float = 1.0

    def quantile(self, u: Array) -> Array:
        return jnp.arctan(jnp.tan(np.pi / 2 * u) / self.shift) * (2 / np.pi)


def draw_times(times: Times, keys: Key, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Training times [B, *shape], an example's own from its key in `keys` [B]; shape (1, 1) beside
    x [B, T, C], (S, 1, 1) beside [B, S, T, C] for a noise level for each stem."""
    # Neither end: a quantile may be infinite there.
    edge = 2.0**-24
    draw = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=edge, maxval=1.0 - edge))
    return times.quantile(draw(keys))


def uniform_weight(t: Array) -> Array:
    """1 everywhere."""
    return jnp.ones_like(t)


def edm_weight(sigma_data: float) -> Callable[[Array], Array]:
    """1 / c_out^2, by which the loss of an untrained network is 1 at all noise levels (Karras et
    al. 2022, table 1), for the variance exploding process."""
    return lambda sigma: (jnp.square(sigma) + sigma_data**2) / jnp.square(sigma * sigma_data)


def snr_weight(process: Process, limit: float = np.inf) -> Callable[[Array], Array]:
    """alpha^2 / sigma^2, which turns an error of x0 into that of eps; min-SNR with a `limit` (Hang
    et al. 2023: 5)."""
    return lambda t: jnp.minimum(1.0 / jnp.square(process.noise_to_signal(t)), limit)


def late_weight(t: Array) -> Array:
    """From 1 at noise to 2 at data, for the velocity of a rectified flow (JASCO, Tal et al. 2024:
    1 + t, where time runs from noise to data)."""
    return 2.0 - t


def denoising_loss(
    predict: Denoiser,
    x0: Float[Array, "B ..."],
    eps: Float[Array, "B ..."],
    t: Float[Array, "B ..."],
    *,
    weight: Callable[[Array], Array],
    process: Process = VARIANCE_EXPLODING,
    kind: str = "x0",
    mask: Bool[Array, "B ..."] | None = None,
) -> Float[Array, " B"]:
    """Mean of weight(t) |prediction - target|^2 over each example.

    Args:
      predict: the network as a function of (x_t, t), of the prediction `kind`; in float32.
      t: broadcastable to x0.
      weight: of the squared error of `kind`, a function of t.
      mask: True where the loss counts, broadcastable to x0 (stems that a song has); an example with
        nothing left has the loss 0.
    """
    prediction = predict(process.noised(x0, eps, t), t)
    error = jnp.square(prediction - process.target(kind, x0, eps, t))
    error = jnp.broadcast_to(weight(t), x0.shape) * error
    counted = jnp.broadcast_to(True if mask is None else mask, x0.shape)
    axes = tuple(range(1, x0.ndim))
    total = jnp.sum(jnp.where(counted, error, 0.0), axis=axes)
    return total / jnp.maximum(jnp.sum(counted, axis=axes), 1)
