"""The recurrence's own gradient, and what it saves between devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.nn import recurrent

T, B, D = 7, 3, 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_the_loop(dtype):
    keys = jax.random.split(jax.random.key(0), 5)
    kernel = 0.5 * jax.random.normal(keys[0], (D, 4 * D), dtype)
    gates = jax.random.normal(keys[1], (T, B, 4 * D), dtype)
    carry = jax.random.normal(keys[2], (2, B, D))
    weights = jax.random.normal(keys[3], (2, B, D)), jax.random.normal(keys[4], (T, B, D))

    def loss(recur, *inputs):
        last, hidden = recur(*inputs)
        return jnp.sum(weights[0] * last) + jnp.sum(weights[1] * hidden)

    found, expected = (
        jax.value_and_grad(lambda *x, recur=recur: loss(recur, *x), argnums=(0, 1, 2))(
            kernel, gates, carry
        )
        for recur in (recurrent.recur, recurrent._recur)
    )
    # The sums over time are in another order; in bfloat16 the loop's rounds at each step.
    near = dict(float32=1e-5, bfloat16=0.1)[dtype]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=near, atol=near
        ),
        found,
        expected,
    )


FOR_TPUS = """
import json
import jax, jax.numpy as jnp
from mgen import preflight
from mgen.nn.recurrent import ResidualLSTM
from mgen.sharding import hlo
from mgen.sharding.mesh import batch_sharding, make_mesh, replicated

mesh = make_mesh("data=4", preflight.devices_of("v5e:2x2"))
model = ResidualLSTM(256, layers=2)
x = jax.ShapeDtypeStruct((8, 64, 256), jnp.float32, sharding=batch_sharding(mesh))
params = jax.eval_shape(model.init, jax.random.key(0), x)
params = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=replicated(mesh)), params
)
step = jax.jit(jax.grad(lambda params, x: jnp.sum(model.apply(params, x) ** 2)))
found = hlo.Program.parse(step.lower(params, x).compile().as_text()).collective_bytes()
size = sum(p.size * 4 for p in jax.tree.leaves(params))
print(json.dumps(sum(found.values()) / size))
"""


def test_gradients_are_summed_over_devices_once(compile_for_tpus):
    ratio = json.loads(compile_for_tpus(FOR_TPUS).splitlines()[-1])
    assert 1.9 < ratio < 2.2  # an all-reduce counts twice
