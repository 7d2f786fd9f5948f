"""Costs counted from programs whose costs are known."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mgen.sharding import cost


def count(function, *shapes):
    return cost.flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def test_a_kernel_counts_once_for_each_step_of_its_grid():
    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    def product(a, b):
        return pl.pallas_call(
            kernel,
            grid=(4,),
            in_specs=[
                pl.BlockSpec((8, 16), lambda i: (i, 0)),
                pl.BlockSpec((16, 16), lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((8, 16), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
        )(a, b)

    found = cost.flops(jax.make_jaxpr(product)(jnp.zeros((32, 16)), jnp.zeros((16, 16))))
    assert found == 2 * 32 * 16 * 16


def test_a_while_counts_as_often_as_told():
    def run(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)

    jaxpr = jax.make_jaxpr(run)(jnp.zeros((4, 4)))
    assert cost.flops(jaxpr) == 2 * 4**3 and cost.flops(jaxpr, 5) == 5 * 2 * 4**3


def test_products_and_convolutions():
    assert count(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 5), (2, 5, 7)) == 420

    def convolution(groups):
        return lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", feature_group_count=groups,
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip

    assert count(convolution(1), (2, 10, 4), (3, 4, 6)) == 2 * (2 * 10 * 6) * (3 * 4)
    assert count(convolution(4), (2, 10, 4), (3, 1, 4)) == 2 * (2 * 10 * 4) * 3


def test_loops_branches_and_calls_count_as_often_as_they_run():
    def step(x, _):
        return jnp.tanh(x @ jnp.ones((4, 4))), None

    once = 2 * 4 * 4 * 4
    assert count(lambda x: jax.lax.scan(step, x, None, length=5)[0], (4, 4)) == 5 * once

    def nested(x):
        inner = lambda x, _: (jax.lax.scan(step, x, None, length=3)[0], None)  # noqa: E731
        return jax.lax.scan(inner, x, None, length=2)[0]

    assert count(nested, (4, 4)) == 6 * once

    def branch(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count(branch, (4, 4)) == 2 * once
    assert count(jax.jit(lambda x: x @ x), (4, 4)) == once

    # The product and its gradient for both sides; the checkpoint computes the product once more.
    def loss(x):
        return jnp.sum(jnp.tanh(x @ x))

    assert count(jax.grad(loss), (4, 4)) == 3 * once
    assert count(jax.grad(jax.checkpoint(loss)), (4, 4)) == 4 * once
