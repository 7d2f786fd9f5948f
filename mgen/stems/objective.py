"""What a network over stems predicts, and how it learns it: settings of `mgen.diffusion`.

edm   the preconditioned network estimates x_0; log-normal noise levels    Karras et al. 2022
v     v of the variance preserving process; uniform times                  Salimans and Ho 2022
flow  velocity of a rectified flow; logit-normal times                     Esser et al. 2024
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from mgen.diffusion import loss
from mgen.diffusion.process import PROCESSES, Denoiser, Process, denoiser, preconditioned
from mgen.errors import UserError
from mgen.typing import Array, Bool, Float

# Name -> process, prediction.
OBJECTIVES = {
    "edm": ("variance_exploding", "x0"),
    "v": ("variance_preserving", "v"),
    "flow": ("rectified_flow", "velocity"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How a network is trained and read.

    Attributes:
      name: of `OBJECTIVES`.
      sigma_data: standard deviation of the data that "edm" assumes.
      clip: bound of the estimate of "edm" on either side, None for none.
      noise_mean, noise_std: in training, of log sigma ("edm") or log t / (1 - t) ("flow").
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
        """What `predict` gives, one of `mgen.diffusion.process.PREDICTIONS`."""
        return OBJECTIVES[self.name][1]

    @property
    def times(self) -> loss.Times:
        """Distribution of the training times."""
        if self.name == "v":
            return loss.Uniform()
        normal = loss.LogNormal if self.name == "edm" else loss.LogitNormal
        return normal(self.noise_mean, self.noise_std)

    @property
    def weight(self) -> Callable[[Array], Array]:
        """Of the squared error of the prediction, at times above 0."""
        if self.name != "edm":
            return loss.uniform_weight
        weight = loss.edm_weight(self.sigma_data)
        # At 0 nothing is learned, but infinity would make the gradients of all NaN.
        return lambda sigma: weight(jnp.where(sigma > 0, sigma, 1.0))

    def predict(self, network: Denoiser) -> Denoiser:
        """The prediction by a network of x and the noise level as it reads it."""
        if self.name == "edm":
            return preconditioned(network, self.sigma_data, self.clip)
        return network

    def denoiser(self, network: Denoiser) -> Denoiser:
        """The estimate D(x, sigma) of x_0 from x = x_0 + sigma eps by that network: variance
        exploding whatever the process, of which x is x_t / alpha at sigma / alpha. So all samplers
        and conditions are the same for all objectives."""
        estimate, process = denoiser(self.predict(network), self.kind, self.process), self.process

        def denoise(x: Array, sigma: Array) -> Array:
            t = process.time(sigma)
            return estimate(process.alpha(t) * x, t)

        return denoise

    def loss(
        self,
        network: Denoiser,
        x0: Float[Array, "B ..."],
        eps: Float[Array, "B ..."],
        t: Float[Array, "B ..."],
        mask: Bool[Array, "B ..."] | None = None,
    ) -> Float[Array, " B"]:
        """See `mgen.diffusion.loss.denoising_loss`."""
        return loss.denoising_loss(
            self.predict(network),
            x0,
            eps,
            t,
            weight=self.weight,
            process=self.process,
            kind=self.kind,
            mask=mask,
        )
