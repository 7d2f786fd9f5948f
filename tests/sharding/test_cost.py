"""Costs counted from programs whose costs are known."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


EIGHT_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from mgen.sharding import cost
from mgen.sharding.mesh import make_mesh

mesh = make_mesh("fsdp=8")
split, whole = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, P())

def layers(x, weights):
    def layer(x, w):
        return jnp.tanh(jax.lax.with_sharding_constraint(x @ w, whole)), None
    return jax.lax.scan(layer, x, weights)[0]

x = jax.ShapeDtypeStruct((4, 64), jnp.float32, sharding=whole)
split = NamedSharding(mesh, P(None, None, "fsdp"))
weights = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=split)
compiled = jax.jit(layers).lower(x, weights).compile()
found = cost.collective_bytes(compiled.as_text())
print(found)
assert list(found) == ["all-gather"]
# A product [4, 64] of every layer, or what it is made of.
assert found["all-gather"] in (6 * 4 * 64 * 4, 6 * 64 * 64 * 4), found
"""


def test_collectives_of_a_loop():
    done = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%a = f32[8,16]{1,0} all-gather(%p), dimensions={0}", {"all-gather": 512}),
        ("%a = (bf16[4]{0}, bf16[32]{0}) all-gather-start(%p)", {"all-gather": 64}),
        ("%a = pred[7]{0} all-reduce(%p), to_apply=%sum", {"all-reduce": 7}),
        ("%a = f32[8]{0} add(%p, %q)", {}),
    ],
)
def test_sizes_of_results(line, expected):
    hlo = f"%sum (x: f32[]) -> f32[] {{\n}}\nENTRY %main (p: f32[2]) -> f32[8] {{\n  {line}\n}}\n"
    assert cost.collective_bytes(hlo) == pytest.approx(expected)
    assert np.isfinite(sum(expected.values()))
