"""What a sampler is given, and where its noise comes from."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from mgen.diffusion.process import Denoiser, Process
from mgen.typing import Array, Float, Key

# constrain(x, t, i) is x with what is known of it put in its place, at the time t of step i.
Constraint: TypeAlias = Callable[[Array, Array, Array], Array]
# noise(i, j) is the standard normal draw j of step i, in the shape of x.
Noise: TypeAlias = Callable[[Array, Array | int], Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """An initial value problem from times[0] to times[-1]; see `mgen.diffusion.samplers.sample`."""

    denoise: Denoiser
    process: Process
    times: Float[Array, "N_plus_1 ..."]
    noise: Noise
    constrain: Constraint

    @property
    def steps(self) -> int:
        return self.times.shape[0] - 1

    def evaluate(self, x: Array, t: Array, i: Array) -> tuple[Array, Array]:
        """The constrained x and the estimate of x_0 from it."""
        x = self.constrain(x, t, i)
        return x, self.denoise(x, t)

    def slope(self, x: Array, t: Array, i: Array) -> tuple[Array, Array]:
        """The constrained x and dx/dt of the probability flow there (score SDEs, Song et al. 2021,
        equation 13)."""
        x, x0 = self.evaluate(x, t, i)
        return x, self.process.convert(x0, x, t, "x0", "velocity")


class Sampler(Protocol):
    """A solver of `Problem`s."""

    @property
    def draws(self) -> int:
        """Draws of noise a step, 0 of a deterministic solver."""

    def solve(self, problem: Problem, x: Array) -> Array:
        """x at the last time."""


class Stepper:
    """A `Sampler` that goes from each time to the next in a `lax.scan`."""

    @property
    def draws(self) -> int:
        return 1

    def memory(self, x: Array, t: Array) -> Any:
        """What the first step knows of the steps before it."""
        return ()

    def step(self, problem: Problem, i: Array, x: Array, memory: Any) -> tuple[Array, Any]:
        """x at times[i + 1] from x at times[i], and what the next step is to know."""
        raise NotImplementedError

    def solve(self, problem: Problem, x: Array) -> Array:
        def body(state: tuple[Array, Any], i: Array) -> tuple[tuple[Array, Any], None]:
            return self.step(problem, i, *state), None

        state = x, self.memory(x, problem.times[0])
        return jax.lax.scan(body, state, jnp.arange(problem.steps))[0][0]


def draw_noise(keys: Key, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal [B, *shape], each example's from its own key in `keys` [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def noise_source(noise: Any, x: Array, draws: tuple[int, int]) -> Noise:
    """`Noise` from keys [B], from an array [*draws, *x.shape], draws = (N, J), or as it is."""
    if callable(noise):
        return noise
    keys = jax.dtypes.issubdtype(noise.dtype, jax.dtypes.prng_key)
    expected = x.shape[:1] if keys else draws + x.shape
    if noise.shape != expected:
        raise ValueError(f"noise of shape {noise.shape}, expected {expected}")
    if not keys:
        return lambda i, j: jnp.asarray(noise)[i, j]

    def drawn(i: Array, j: Array | int) -> Array:
        fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        return draw_noise(fold(fold(noise, i), j), x.shape[1:])

    return drawn
