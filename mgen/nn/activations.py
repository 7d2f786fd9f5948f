"""Activations of audio models; the periodic ones have learnt frequencies.

snake (Ziyin et al. 2020; Kumar et al. 2023, eq. 1):  x + sin^2(a x) / a
snake_beta (BigVGAN; Stable Audio):                   x + sin^2(e^a x) / e^b
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.nn.streaming import State
from mgen.typing import Array, Float

SNAKE_EPS = 1e-9
PLAIN: dict[str, Callable[[Array], Array]] = {
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
NAMES = (*PLAIN, "snake", "snake_beta")


class Activation(nn.Module):
    """The activation called `kind` (one of `NAMES`) on [B, T, C] with C = `features`. Stateless, so
    a stream is its offline self.
    """

    kind: str
    features: int

    def setup(self) -> None:
        if self.kind == "snake":
            self.alpha = self.param("alpha", nn.initializers.ones, (self.features,))
        elif self.kind == "snake_beta":
            self.log_alpha = self.param("log_alpha", nn.initializers.zeros, (self.features,))
            self.log_beta = self.param("log_beta", nn.initializers.zeros, (self.features,))
        elif self.kind not in PLAIN:
            raise ValueError(f"activation {self.kind!r}, expected one of {NAMES}")

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        if self.kind == "snake":
            frequency = magnitude = self.alpha
        elif self.kind == "snake_beta":
            frequency, magnitude = jnp.exp(self.log_alpha), jnp.exp(self.log_beta)
        else:
            return PLAIN[self.kind](x)
        frequency, gain = (
            v.astype(x.dtype)[None, None] for v in (frequency, 1.0 / (magnitude + SNAKE_EPS))
        )
        return x + gain * jnp.square(jnp.sin(frequency * x))

    def init_state(self, batch: int) -> State:
        del batch
        return ()

    def step(self, state: State, block: Array) -> tuple[State, Array]:
        return state, self(block)
