"""The streaming contract: for a causal layer, `layer(x)` equals `step` block by block.

A streamable Linen module has, beside `__call__(x)`:
  init_state(batch) -> state            the state before the first sample, a pytree;
  step(state, block) -> (state, output) the next block in, its output out.
Blocks are [B, t, C] with t a multiple of the layer's stride. `verify_streaming` is the one test of
the contract.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgen.typing import Array, Float

State = Any


def split_blocks(x: Float[Array, "B T C"], sizes: Sequence[int]) -> list[Array]:
    """Cuts `x` along time into blocks of `sizes`; `ValueError` where they do not add up to its
    length.
    """
    if sum(sizes) != x.shape[1]:
        raise ValueError(f"block sizes add up to {sum(sizes)}, the input has {x.shape[1]} steps")
    return [x[:, end - size : end] for size, end in zip(sizes, np.cumsum(sizes))]


def run_stream(
    module: nn.Module,
    variables: Any,
    x: Float[Array, "B T C"],
    sizes: Sequence[int],
    *,
    init_state: str = "init_state",
    step: str = "step",
) -> Array:
    """Feeds `x` to `module` in blocks of `sizes`; returns the outputs joined along time."""
    state: Any = module.apply(variables, x.shape[0], method=init_state)
    outputs: list[Any] = []
    for block in split_blocks(x, sizes):
        state, output = module.apply(variables, state, block, method=step)
        outputs.append(output)
    return jnp.concatenate(outputs, axis=1)


def verify_streaming(
    module: nn.Module,
    variables: Any,
    x: Float[Array, "B T C"],
    sizes: Sequence[int],
    *,
    atol: float = 1e-5,
    gradients: bool = False,
    offline: str = "__call__",
    init_state: str = "init_state",
    step: str = "step",
) -> None:
    """Raises `AssertionError` where block by block and offline outputs differ by more than `atol`.

    With `gradients`, the gradients of the summed squares of both by variables and input are
    compared as well, relative to the largest entry of each.
    """

    def whole(variables: Any, x: Array) -> Any:
        return module.apply(variables, x, method=offline)

    def blocks(variables: Any, x: Array) -> Array:
        return run_stream(module, variables, x, sizes, init_state=init_state, step=step)

    expected = whole(variables, x)
    np.testing.assert_allclose(blocks(variables, x), expected, rtol=0, atol=atol)
    if not gradients:
        return

    def energy(run: Any) -> Any:
        return jax.jit(
            jax.grad(lambda variables, x: jnp.sum(run(variables, x) ** 2), argnums=(0, 1))
        )

    compared = zip(
        jax.tree.leaves(energy(blocks)(variables, x)), jax.tree.leaves(energy(whole)(variables, x))
    )
    for found, wanted in compared:
        scale = max(float(jnp.max(jnp.abs(wanted))), 1.0)
        np.testing.assert_allclose(found / scale, wanted / scale, rtol=0, atol=10 * atol)
