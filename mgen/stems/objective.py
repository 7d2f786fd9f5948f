"""What a network over stems predicts, and how it learns it: settings of `mgen.diffusion`.

  edm   the preconditioned network estimates x_0; log-normal noise levels    Karras et al. 2022
  v     v of the variance preserving process; uniform times                  Salimans and Ho 2022
  flow  velocity of a rectified flow; logit-normal times                     Esser et al. 2024

Whatever the process, all is told in noise levels sigma / alpha of x = x_0 + sigma eps, so that
training, samplers and conditions are the same for all of them. An error of x_0 is one of the
prediction p = a x_0 + b eps times (a sigma - b alpha) / sigma, which makes its weight.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from mgen.diffusion import loss
from mgen.diffusion.process import PROCESSES, Denoiser, Process, denoiser, preconditioned
from mgen.errors import UserError
from mgen.typing import Array

# Name -> process, prediction.
OBJECTIVES = {
    "edm": ("variance_exploding", "x0"),
    "v": ("variance_preserving", "v"),
    "flow": ("rectified_flow", "velocity"),
}


@dataclasses.dataclass(frozen=True)
class Levels:
    """Distribution of the noise levels at times of a process."""

    times: loss.Times
    process: Process

    def quantile(self, u: Array) -> Array:
        return self.process.noise_to_signal(self.times.quantile(u))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How a network is trained and read.

    Attributes:
      name: of `OBJECTIVES`.
      sigma_data: standard deviation of the data that "edm" assumes.
      clip: bound of the estimate of "edm" on either side, None for none.
      noise_mean, noise_std: of log sigma ("edm") or log t / (1 - t) ("flow") in training.
    """

    name: str = "edm"
    sigma_data: float = 1.0
    clip: float | None = None
    noise_mean: float = 0.0
    noise_std: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise UserError(
                f"diffusion.objective is {self.name!r}, expected one of {sorted(OBJECTIVES)}"
            )

    @property
    def process(self) -> Process:
        return PROCESSES[OBJECTIVES[self.name][0]]

    @property
    def kind(self) -> str:
        """What is predicted, one of `mgen.diffusion.process.PREDICTIONS`."""
        return OBJECTIVES[self.name][1]

    @property
    def levels(self) -> Levels:
        """Distribution of the noise levels in training."""
        times: dict[str, loss.Times] = {
            "edm": loss.LogNormal(self.noise_mean, self.noise_std),
            "v": loss.Uniform(),
            "flow": loss.LogitNormal(self.noise_mean, self.noise_std),
        }
        return Levels(times[self.name], self.process)

    @property
    def weight(self) -> Callable[[Array], Array]:
        """Of the squared error of x_0, a function of the noise level; finite at 0, where nothing is
        learned, or the gradients of all would be NaN."""

        def weight(sigma: Array) -> Array:
            sigma = jnp.where(sigma > 0, sigma, 1.0)
            if self.name == "edm":
                return loss.edm_weight(self.sigma_data)(sigma)
            t = self.process.time(sigma)
            a, b = self.process.coefficients(self.kind, t)
            return jnp.square(a - b / sigma)

        return weight

    def denoiser(self, network: Denoiser) -> Denoiser:
        """The estimate D(x, sigma) of x_0 by a network of (x_t, t); "edm": of (c_in x, c_noise)."""
        if self.name == "edm":
            return preconditioned(network, self.sigma_data, self.clip)
        estimate, process = denoiser(network, self.kind, self.process), self.process

        def denoise(x: Array, sigma: Array) -> Array:
            t = process.time(sigma)
            return estimate(process.alpha(t) * x, t)

        return denoise
