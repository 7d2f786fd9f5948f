"""The steps of samplers with a fixed number of them, for any process; t and u are the times of a
step, and e^-h is `Process.decay`.

Noise levels are compared as sigma / alpha, which in the variance exploding process is sigma: there
each of these is the published algorithm to the letter.
"""

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mgen.diffusion.trajectory import Problem, Stepper
from mgen.errors import UserError
from mgen.typing import Array

# Nodes and rows of the stages after the first, weights of all (Butcher 2016).
TABLEAUS: dict[str, tuple[tuple, tuple, tuple]] = {
    "euler": ((), (), (1.0,)),
    "heun": ((1.0,), ((1.0,),), (0.5, 0.5)),
    "midpoint": ((0.5,), ((0.5,),), (0.0, 1.0)),
    "rk4": (
        (0.5, 0.5, 1.0),
        ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


@dataclasses.dataclass(frozen=True)
class RungeKutta(Stepper):
    """The probability flow dx/dt by a Runge-Kutta method, optionally with fresh noise on the way.

    A step that ends at sigma = 0, where a denoiser tells no slope, is an Euler step (Karras et al.
    2022, algorithm 1): orders above 2 show only if the step before it ended close to 0.

    Attributes:
      tableau: one of `TABLEAUS`.
      churn: S_churn: before a step sigma / alpha grows by min(churn / N, sqrt(2) - 1) of itself
        (Karras et al. 2022, algorithm 2).
      churn_min, churn_max: the noise levels sigma / alpha where it does.
      churn_noise: S_noise, standard deviation of that noise, slightly above 1 where the denoiser
        removes too much.
      repeats: how often each step is made, going back in between by the noise that it removed
        (MSDM, Mariani et al. 2024, algorithm 1; RePaint, Lugmayr et al. 2022).

    Draws: 2 r of repeat r before it, to go back, and 2 r + 1 for the churn.
    """

    tableau: str = "euler"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = np.inf
    churn_noise: float = 1.0
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.tableau not in TABLEAUS or self.repeats < 1:
            raise UserError(
                f"Runge-Kutta tableau {self.tableau!r}, repeats {self.repeats}: expected one of"
                f" {list(TABLEAUS)} and at least 1"
            )

    @property
    def draws(self) -> int:
        return 2 * self.repeats if self.churn or self.repeats > 1 else 0

    def step(self, problem: Problem, i: Array, x: Array, memory: tuple) -> tuple[Array, tuple]:
        t, u = problem.times[i], problem.times[i + 1]

        def repeat(r: Array, x: Array) -> Array:
            if self.repeats > 1:
                back = problem.process.renoised(x, problem.noise(i, 2 * r), u, t)
                x = jnp.where(r > 0, back, x)
            if not self.churn:
                return self._stages(problem, i, x, t, u)
            higher = self._churned(problem, t)
            x = problem.process.renoised(
                x, self.churn_noise * problem.noise(i, 2 * r + 1), t, higher
            )
            return self._stages(problem, i, x, higher, u)

        return jax.lax.fori_loop(0, self.repeats, repeat, x), memory

    def _churned(self, problem: Problem, t: Array) -> Array:
        level = problem.process.noise_to_signal(t)
        growth = 1.0 + min(self.churn / problem.steps, np.sqrt(2.0) - 1.0)
        grows = (self.churn_min <= level) & (level <= self.churn_max) & jnp.isfinite(level)
        return jnp.where(grows, problem.process.time(growth * level), t)

    def _stages(self, problem: Problem, i: Array, x: Array, t: Array, u: Array) -> Array:
        nodes, rows, weights = TABLEAUS[self.tableau]
        # With no way between the stages all slopes are the first one, whose weights are 1 in all.
        way = jnp.where(problem.process.sigma(u) > 0, u - t, 0.0)
        x, slope = problem.slope(x, t, i)
        slopes = [slope]
        for node, row in zip(nodes, rows):
            stage = x + way * sum(a * k for a, k in zip(row, slopes) if a)
            slopes.append(problem.slope(stage, t + node * way, i)[1])
        return x + (u - t) * sum(b * k for b, k in zip(weights, slopes) if b)


@dataclasses.dataclass(frozen=True)
class DDIM(Stepper):
    """Song et al. 2021, equation 12: with eta = 0 deterministic, with eta = 1 ancestral sampling
    (DDPM's posterior, and the "Euler ancestral" of k-diffusion)."""

    eta: float = 0.0

    @property
    def draws(self) -> int:
        return 1 if self.eta else 0

    def step(self, problem: Problem, i: Array, x: Array, memory: tuple) -> tuple[Array, tuple]:
        process, t, u = problem.process, problem.times[i], problem.times[i + 1]
        x, x0 = problem.evaluate(x, t, i)
        x = process.denoised(x, x0, t, u)
        if not self.eta:
            return x, memory
        fresh = jnp.square(self.eta) * (1.0 - jnp.square(process.decay(t, u)))
        signal = process.alpha(u) * x0
        noise = jnp.sqrt(fresh) * process.sigma(u) * problem.noise(i, 0)
        return signal + jnp.sqrt(1.0 - fresh) * (x - signal) + noise, memory


@dataclasses.dataclass(frozen=True)
class PingPong(Stepper):
    """Denoise, then noise afresh: multistep consistency sampling (Song et al. 2023, algorithm 1),
    for models that were distilled to it."""

    def step(self, problem: Problem, i: Array, x: Array, memory: tuple) -> tuple[Array, tuple]:
        t, u = problem.times[i], problem.times[i + 1]
        x, x0 = problem.evaluate(x, t, i)
        fresh = problem.process.noised(x0, problem.noise(i, 0), u)
        return jnp.where(u == t, x, fresh), memory


@dataclasses.dataclass(frozen=True)
class ADPM2(Stepper):
    """Ancestral sampling with a second evaluation half way down (k-diffusion's DPM2 ancestral; with
    rho = 1 that of audio-diffusion-pytorch).

    Attributes:
      rho: "half way" is of (sigma / alpha)^(1 / rho).

    Wants alpha > 0 at the first time.
    """

    rho: float = 1.0

    def step(self, problem: Problem, i: Array, x: Array, memory: tuple) -> tuple[Array, tuple]:
        process, t, u = problem.process, problem.times[i], problem.times[i + 1]
        decay, alpha = process.decay(t, u), process.alpha(u)
        level, level_u = process.noise_to_signal(t), process.noise_to_signal(u)
        up, down = level_u * jnp.sqrt(1.0 - jnp.square(decay)), level_u * decay
        half = ((level ** (1 / self.rho) + down ** (1 / self.rho)) / 2) ** self.rho
        middle = process.time(half)
        x, x0 = problem.evaluate(x, t, i)
        inner, x0 = problem.evaluate(process.denoised(x, x0, t, middle), middle, i)
        eps = process.convert(x0, inner, middle, "x0", "eps")
        x = x / process.alpha(t) + (down - level) * eps + up * problem.noise(i, 0)
        return alpha * x, memory


Estimates: TypeAlias = tuple[Array, Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class DPMSolver(Stepper):
    """DPM-Solver++ (Lu et al. 2022) in its multistep forms: exact in x, with the estimate of x_0 as
    a polynomial in log(alpha / sigma) through the last `order` ones.

    Attributes:
      order: 2 (their algorithm 2) or 3 (k-diffusion's DPM++ 3M SDE, the default of Stable Audio).
      eta: 0 for the ODE, 1 for the SDE.

    The first step and one to sigma = 0 are of first order.
    """

    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise UserError(f"DPM-Solver++ of order {self.order}, expected 2 or 3")

    @property
    def draws(self) -> int:
        return 1 if self.eta else 0

    def memory(self, x: Array, t: Array) -> Estimates:
        """The last two estimates, and by how much h each was followed (0: there was none)."""
        return jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros_like(t), jnp.zeros_like(t)

    def step(
        self, problem: Problem, i: Array, x: Array, memory: Estimates
    ) -> tuple[Array, Estimates]:
        process, t, u = problem.process, problem.times[i], problem.times[i + 1]
        x, x0 = problem.evaluate(x, t, i)
        last, before, h_last, h_before = memory
        decay = process.decay(t, u)
        h = -jnp.log(decay)
        kept = decay**self.eta
        slope, curvature = self._derivatives(x0, last, before, h, h_last, h_before)
        new = process.denoised(x, x0, t, u)
        signal = process.alpha(u)
        if self.eta:
            # Of equation 8 with e^-h shared out between x and the fresh noise.
            new = signal * x0 + kept * (new - signal * x0)
            noise = jnp.sqrt(1.0 - jnp.square(kept)) * process.sigma(u)
            new = new + noise * problem.noise(i, 0)
        gain = 1.0 - kept * decay
        total = jnp.where((h > 0) & jnp.isfinite(h), (1.0 + self.eta) * h, 1.0)
        if self.order == 2:
            new = new + signal * gain / 2 * slope
        else:
            phi2 = 1.0 - gain / total
            new = new + signal * (phi2 * slope - (phi2 / total - 0.5) * curvature)
        return new, (x0, last, h, h_last)

    def _derivatives(
        self, x0: Array, last: Array, before: Array, h: Array, h_last: Array, h_before: Array
    ) -> tuple[Array, Array]:
        """Divided differences of the estimates, first and second, in units of h; 0 where estimates
        are missing or infinitely far."""

        def over(x: Array, h: Array) -> Array:
            known = (h > 0) & jnp.isfinite(h)
            return jnp.where(known, x / jnp.where(known, h, 1.0), 0.0)

        finite = jnp.where(jnp.isfinite(h), h, 0.0)
        first = over(x0 - last, h_last) * finite
        if self.order == 2:
            return first, jnp.zeros_like(first)
        earlier = over(last - before, h_before) * finite
        second = jnp.where(h_before > 0, over(first - earlier, h_last + h_before), 0.0)
        return first + second * jnp.where(jnp.isfinite(h_last), h_last, 0.0), second * finite
