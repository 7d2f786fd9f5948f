"""An ODE solver that chooses its own steps."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mgen.diffusion.trajectory import Problem
from mgen.typing import Array

# Dormand and Prince 1980 (Hairer, Nørsett and Wanner 1993, table 5.2); the last row is the step.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
ROWS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# The step less the embedded one of order 4.
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class _State(NamedTuple):
    x: Array
    slope: Array
    t: Array  # [B, 1, ...], as the step
    step: Array
    attempts: Array


@dataclasses.dataclass(frozen=True)
class Dopri5:
    """Dormand-Prince of order 5 on the probability flow dx/dt, each example with its own steps, so
    that none depends on its batch mates.

    Integrates from the first time to the last but one, then makes an Euler step to the last, which
    may be 0; times[1] is where the first step tried goes to.

    Attributes:
      rtol, atol: of the root mean square of a step's error (Hairer, Nørsett and Wanner 1993,
        section II.4).
      max_steps: attempts after which an example that has not arrived comes out as NaN.

    Constraints see step 0 all the time: what they draw is drawn once.
    """

    rtol: float = 1e-4
    atol: float = 1e-5
    max_steps: int = 256

    draws = 0

    def solve(self, problem: Problem, x: Array) -> Array:
        if problem.times.size != problem.times.shape[0]:
            raise ValueError("dopri5 takes times [N + 1] that all of x shares")
        zero, each = jnp.zeros((), jnp.int32), (x.shape[0],) + (1,) * (x.ndim - 1)
        begin, target = problem.times[0], problem.times[-2]
        x, slope = problem.slope(x, jnp.broadcast_to(begin, each), zero)
        t, step = jnp.broadcast_to(begin, each), jnp.broadcast_to(problem.times[1] - begin, each)

        def under_way(state: _State) -> Array:
            return jnp.any(state.t != target) & (state.attempts < self.max_steps)

        def attempt(state: _State) -> _State:
            return self._attempt(problem, target, state)

        state = jax.lax.while_loop(under_way, attempt, _State(x, slope, t, step, zero))
        x = jnp.where(state.t == target, state.x, jnp.nan)
        x, slope = problem.slope(x, jnp.broadcast_to(target, each), zero)
        return x + (problem.times[-1] - target) * slope

    def _attempt(self, problem: Problem, target: Array, state: _State) -> _State:
        left, zero = target - state.t, jnp.zeros((), jnp.int32)
        # Solutions are nearly straight far from the data: a step past where they bend looks exact.
        step = jnp.maximum(state.step, -state.t / 2)
        lands = jnp.abs(step) >= jnp.abs(left)
        way = jnp.where(lands, left, step)
        x, slopes = state.x, [state.slope]
        for node, row in zip(NODES, ROWS):
            x = state.x + way * sum(a * k for a, k in zip(row, slopes) if a)
            x, slope = problem.slope(x, state.t + node * way, zero)
            slopes.append(slope)
        error = way * sum(e * k for e, k in zip(ERROR, slopes) if e)
        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(x), jnp.abs(state.x))
        axes = tuple(range(1, x.ndim))
        norm = jnp.sqrt(jnp.mean(jnp.square(error / scale), axis=axes, keepdims=True))
        accepted = norm <= 1.0
        # Toward an error of 0.9^5, by a factor of at most 5 in either direction.
        factor = jnp.clip(0.9 * jnp.maximum(norm, 1e-10) ** -0.2, 0.2, 5.0)
        t = jnp.where(lands, target, state.t + way)
        return _State(
            x=jnp.where(accepted, x, state.x),
            slope=jnp.where(accepted, slopes[-1], state.slope),
            t=jnp.where(accepted, t, state.t),
            step=jnp.where(left == 0, state.step, way * factor),
            attempts=state.attempts + 1,
        )
