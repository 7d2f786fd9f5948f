"""How stems are drawn, and what a mix says of them: the settings of MSDM (Mariani et al. 2024)."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp

from mgen.diffusion import posterior
from mgen.diffusion.process import Denoiser
from mgen.diffusion.samplers import named
from mgen.diffusion.schedules import karras
from mgen.diffusion.trajectory import Constraint, Sampler
from mgen.errors import UserError
from mgen.typing import Array, Float, ndarray

# Of the noise level of what is given, which is 0, and of a likelihood that is none there.
_NO_NOISE = 1e-10


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The way from noise to stems.

    Attributes:
      steps, sigma_min, sigma_max, rho: of Karras' schedule, which ends with a step to 0.
      sampler: one of `mgen.diffusion.samplers.SAMPLERS`.
      churn, repeats: see `RungeKutta`; other samplers have none: 0 and 1.
    """

    steps: int = 150
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    rho: float = 7.0
    sampler: str = "euler"
    churn: float = 0.0
    repeats: int = 1

    def __post_init__(self) -> None:
        self.times()
        self.solver()

    def times(self) -> Float[ndarray, " N_plus_1"]:
        """Noise levels."""
        return karras(self.steps, self.sigma_min, self.sigma_max, self.rho)

    def solver(self) -> Sampler:
        """The sampler; `UserError` for a name or an option that there is not."""
        plain, options = (0.0, 1), dict(churn=self.churn, repeats=self.repeats)
        changed = {name: value for (name, value), d in zip(options.items(), plain) if value != d}
        return named(self.sampler, **changed)


# MSDM's released configs, by task.
GENERATION = SamplingConfig(steps=150, sigma_max=20.0, churn=20.0)
IMPUTATION = SamplingConfig(steps=256, sigma_max=20.0, churn=10.0)
SEPARATION_DIRAC = SamplingConfig(steps=150, sigma_max=1.0, churn=20.0, repeats=2)
SEPARATION_GAUSSIAN = SamplingConfig(steps=150, sigma_max=1.0, churn=40.0, repeats=2)
# Of a model that reads the mix. Each step leaves the expected stems (a single one gives them) for
# drawn ones: on stems/tiny_bands 1, 5 and 20 steps gave an SI-SDRi of 7.6, 6.0 and 4.9 dB.
SEPARATION_TRACK = SamplingConfig(steps=5, sigma_max=1.0)
SEPARATION_INDEPENDENT = SamplingConfig(steps=150, sigma_max=1.0, churn=40.0, repeats=2)


@dataclasses.dataclass(frozen=True)
class Dirac:
    """Stems sum to the mix exactly; see `posterior.dirac_separation`.

    Without fresh noise the derived stem has too little variance: keep `churn` and `repeats`. Beside
    stems that are given, the derived one is none of them.

    Attributes:
      derived: number of the stem that is what the others leave of the mix (MSDM's code: 0, its
        paper: the last one); None averages over all.
    """

    derived: int | None = 0

    sampling = SEPARATION_DIRAC

    def apply(
        self, denoise: Denoiser, mix: Float[Array, "B 1 T C"], stems: int
    ) -> tuple[Denoiser, Constraint]:
        """The denoiser of a number of stems given their mix, and the constraint that goes with it.

        Raises:
          UserError: a derived stem that there is not.
        """
        if self.derived is not None and not 0 <= self.derived < stems:
            raise UserError(f"derived stem is {self.derived}, expected 0 to {stems - 1}, or None")
        return posterior.dirac_separation(denoise, mix, self.derived)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Stems sum to the mix up to N(0, (gamma sigma)^2); see `posterior.gaussian_separation`.

    Attributes:
      gamma: in noise levels. The default is that of MSDM's released code. The 0.75 of the paper
        with the exact gradient leaves the stable range in the last step of MSDM's schedule.
    """

    gamma: float = posterior.MSDM_GAMMA

    sampling = SEPARATION_GAUSSIAN

    def __post_init__(self) -> None:
        if self.gamma <= 0.0:
            raise UserError(f"gamma is {self.gamma}, expected more than 0")

    def apply(
        self, denoise: Denoiser, mix: Float[Array, "B 1 T C"], stems: int
    ) -> tuple[Denoiser, Constraint]:
        """The denoiser of stems given their mix, and no constraint."""

        def gamma(t: Array) -> Array:
            return jnp.maximum(self.gamma * t, _NO_NOISE)

        return posterior.gaussian_separation(denoise, mix, gamma), lambda x, t, i: x


@dataclasses.dataclass(frozen=True)
class Track:
    """The mix is a clean track beside the stems, of a model trained so (`beside_mix`); they sum to
    it as far as the model knows it."""

    sampling = SEPARATION_TRACK

    def apply(
        self, denoise: Callable[..., Array], mix: Float[Array, "B 1 T C"], stems: int
    ) -> tuple[Denoiser, Constraint]:
        """The denoiser of stems given their mix, and no constraint.

        Args:
          denoise: of stems, a noise level and the mix.
        """
        del stems
        return lambda x, t: denoise(x, t, mix), lambda x, t, i: x


Likelihood: TypeAlias = Dirac | Gaussian | Track
# That of MSDM's released code.
DIRAC = Dirac()
TRACK = Track()
