"""Extrema against numpy's, and their precision in programs for TPUs."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mgen.nn import extrema

VALUES = st.sampled_from([-np.inf, -1.5, 0.0, 0.25, np.nextafter(np.float32(0.25), 1), 3.0])


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (4, 7), elements=VALUES))
def test_the_first_of_the_extreme_values(x):
    np.testing.assert_array_equal(extrema.argmax(jnp.asarray(x)), x.argmax(axis=-1))
    index, value = extrema.argmin(jnp.asarray(x))
    np.testing.assert_array_equal(index, x.argmin(axis=-1))
    np.testing.assert_array_equal(value, x.min(axis=-1))


def test_where_there_is_none_it_is_the_first():
    x = jnp.asarray([[jnp.inf, jnp.inf, jnp.inf]])
    np.testing.assert_array_equal(extrema.argmin(x)[0], 0)
    np.testing.assert_array_equal(extrema.argmax(-x), 0)


COMPILED = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mgen import preflight
from mgen.lm.filters import sample_tokens
from mgen.nn.cluster import residual_codes
from mgen.semantic.targets import random_projection

mesh = Mesh(preflight.devices_of("v5e:1x1")[:1], ("x",))
place = NamedSharding(mesh, P())
spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
keys = jax.ShapeDtypeStruct((8,), jax.eval_shape(jax.random.key, 0).dtype, sharding=place)
numbers = dict(temperature=spec(), top_k=spec(), top_p=spec())
draw = lambda keys, logits, numbers: sample_tokens(keys, logits, numbers, (False, False))
projection = dict(projection=spec(1, 64, 16), codebook=spec(1, 512, 16))
for function, given in (
    (lambda x: jnp.argmax(x, axis=-1), (spec(4096, 1024),)),  # what is wrong without
    (residual_codes, (spec(4096, 64), spec(4, 512, 64))),
    (random_projection, (projection, spec(4, 512, 64))),
    (draw, (keys, spec(8, 4, 512), numbers)),
):
    print("bf16[" in jax.jit(function).lower(*given).compile().as_text())
"""


def test_programs_for_tpus_compare_in_float32(compile_for_tpus):
    printed = compile_for_tpus(COMPILED)
    assert printed.split()[-4:] == ["True", "False", "False", "False"]
