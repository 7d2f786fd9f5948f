"""The LSTM of SEANet codecs: stacked, unidirectional, with a residual around the stack."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.nn.streaming import State
from mgen.typing import Array, Float

# Steps of the recurrence in one iteration of the compiled loop: fewer loop round trips, little more
# to compile.
UNROLL = 4


def _uniform(bound: float) -> nn.initializers.Initializer:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def _recur(
    kernel: Float[Array, "D 4D"], gates: Float[Array, "T B 4D"], carry: Float[Array, "2 B D"]
) -> tuple[Float[Array, "2 B D"], Float[Array, "T B D"]]:
    """The hidden states after each step, given what the input adds to the gates; and the last
    state."""

    def advance(carry: Array, gates: Array) -> tuple:
        hidden, cell = carry
        gates = (gates + hidden.astype(kernel.dtype) @ kernel).astype(jnp.float32)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return jnp.stack([hidden, cell]), hidden.astype(kernel.dtype)

    return jax.lax.scan(advance, carry, gates, unroll=UNROLL)


# The gradient of the kernel is one product over all steps: a sum that grew in the loop would be
# summed over the devices in each of its steps (EnCodec 32 kHz: 6.4 of 7.2 GB between devices).
recur = jax.custom_vjp(_recur)


def _recur_forward(kernel: Array, gates: Array, carry: Array) -> tuple[Any, Any]:
    made, backward = jax.vjp(functools.partial(_recur, kernel), gates, carry)
    before = jnp.concatenate([carry[:1].astype(kernel.dtype), made[1][:-1]])
    return made, (backward, before)


def _recur_backward(kept: Any, cotangents: Any) -> tuple[Array, Array, Array]:
    backward, before = kept
    gates, carry = backward(cotangents)
    return jnp.einsum("tbd,tbg->dg", before, gates), gates, carry


recur.defvjp(_recur_forward, _recur_backward)


class ResidualLSTM(nn.Module):
    """x + LSTM(x) on [B, T, features] (EnCodec, section 3.1; gates in the order input, forget,
    cell, output).

    The input projection of a layer is one matrix product over all steps; only the recurrence runs
    step by step. Two biases a layer, one for each product, as in the released weights.
    """

    features: int
    layers: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        init, d = _uniform(self.features**-0.5), self.features
        zeros = nn.initializers.zeros
        self.weights = [
            {
                "input_kernel": self.param(f"input_kernel_{i}", init, (d, 4 * d)),
                "hidden_kernel": self.param(f"hidden_kernel_{i}", init, (d, 4 * d)),
                "input_bias": self.param(f"input_bias_{i}", zeros, (4 * d,)),
                "hidden_bias": self.param(f"hidden_bias_{i}", zeros, (4 * d,)),
            }
            for i in range(self.layers)
        ]

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.step(self.init_state(x.shape[0]), x)[1]

    def init_state(self, batch: int) -> State:
        """Hidden and cell state of each layer: [layers, 2, B, features], zeros."""
        return jnp.zeros((self.layers, 2, batch, self.features), jnp.float32)

    def step(self, state: State, block: Array) -> tuple[State, Array]:
        y, carries = block.astype(self.dtype), []
        for weights, carry in zip(self.weights, state):
            kernel = weights["hidden_kernel"].astype(self.dtype)
            bias = (weights["input_bias"] + weights["hidden_bias"]).astype(self.dtype)
            gates = y @ weights["input_kernel"].astype(self.dtype) + bias[None, None]

            carry, outputs = recur(kernel, gates.swapaxes(0, 1), carry)
            carries.append(carry)
            y = outputs.swapaxes(0, 1)
        return jnp.stack(carries), block + y.astype(block.dtype)
