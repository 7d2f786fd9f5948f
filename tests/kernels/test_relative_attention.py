"""The kernel against what it is: all scores at once. Interpreted, with races looked for, and
compiled by the TPUs' own compiler."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from mgen.errors import UserError
from mgen.kernels import relative_attention as kernels
from mgen.kernels.relative_attention import pallas_tpu, reference
from mgen.nn.masks import Nearby

# name -> batch, queries, keys, heads, groups, bias, embedding, masks. Blocks are of 128.
CASES = {
    "bias": (2, 256, 256, 1, 1, True, False, {}),
    "Shaw": (1, 256, 256, 1, 1, False, True, dict(causal=True)),
    "both, ragged, grouped": (1, 130, 200, 2, 1, True, True, {}),
    "window and sink": (1, 384, 384, 1, 1, True, False, dict(causal=True, window=100, sink=3)),
    "neither": (1, 130, 130, 1, 1, False, False, dict(causal=True)),
    "nearby": (2, 384, 384, 1, 1, False, False, dict(nearby=(5, 3))),
    "nearby, both": (2, 260, 260, 2, 1, True, True, dict(nearby=(130, 140))),
}


def draw(batch, queries, keys, heads, groups, bias, embedding, width=32):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    distances = queries + keys - 1
    inputs = [
        normal(batch, heads, queries, width),
        *(normal(batch, groups, keys, width) for _ in "kv"),
    ]
    inputs.append(normal(heads, distances) if bias else None)
    inputs.append(0.3 * normal(heads, distances, width) if embedding else None)
    return inputs, normal(batch, heads, queries, width)


def races():
    return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(case):
    *shape, masks = CASES[case]
    inputs, cotangent = draw(*shape)
    masks = dict(masks)
    if "nearby" in masks:  # the last example sees everything
        context, front = masks["nearby"]
        masks["nearby"] = Nearby(jnp.arange(shape[0]) == shape[0] - 1, context, front)
    options = dict(scale=32**-0.5, **masks)
    at = [i for i, x in enumerate(inputs) if x is not None]

    def both(function, **more):
        def run(*given):
            own = list(inputs)
            for i, x in zip(at, given):
                own[i] = x
            return function(*own, **options, **more)

        out, pull = jax.vjp(run, *(inputs[i] for i in at))
        return out, pull(cotangent)

    found = both(pallas_tpu.relative_attention, block=128, interpret=races())
    expected = both(reference.relative_attention)
    # Float32 sums over at most 300 keys in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=3e-5), found, expected)
    assert not jax_races_found()


def jax_races_found():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    return interpret_pallas_call.races.races_found


def test_bfloat16_keeps_sums_in_float32():
    inputs, _ = draw(1, 256, 256, 2, 2, True, False)
    low = [None if x is None else x.astype(jnp.bfloat16) for x in inputs]
    found = pallas_tpu.relative_attention(*low, block=128, interpret=True, scale=0.1)
    exact = reference.relative_attention(
        *(None if x is None else x.astype(jnp.float32) for x in low), scale=0.1
    )
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.03)


@settings(deadline=None, max_examples=20)
@given(queries=st.integers(1, 9), keys=st.integers(1, 9))
def test_by_position_picks_the_distance(queries, keys):
    distances = jnp.arange(queries + keys - 1.0)
    scores = reference.by_position(jnp.broadcast_to(distances, (1, 1, queries, len(distances))))
    query, key = np.mgrid[:queries, :keys]
    np.testing.assert_array_equal(scores[0, 0], key - query + queries - 1)


def test_shapes_that_do_not_fit_are_refused():
    (q, k, v, bias, _), _ = draw(2, 16, 16, 2, 2, True, False)
    with pytest.raises(UserError, match="bias of shape"):
        kernels.relative_attention(q, k, v, bias[:, 1:])
    with pytest.raises(UserError, match="heads of queries over"):
        kernels.relative_attention(q[:, :1].repeat(3, axis=1), k, v)
    with pytest.raises(UserError, match="implementation 'fast'"):
        kernels.relative_attention(q, k, v, bias, implementation="fast")
    out = kernels.relative_attention(q, k, v, bias)
    np.testing.assert_allclose(out, reference.relative_attention(q, k, v, bias), atol=1e-6)


COMPILED = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mgen import preflight
from mgen.kernels.relative_attention import pallas_tpu, reference
from mgen.nn.masks import Nearby

topology, kind = sys.argv[1:]
device = preflight.devices_of(topology)[:1]
place = NamedSharding(Mesh(device, ("x",)), P())
B, H, T, D = 4, 16, 4096, 64
spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
inputs = [spec(B, H, T, D)] * 3
bias, embedding = dict(bias=spec(H, 2 * T - 1)), dict(embedding=spec(H, 2 * T - 1, D))
tables = dict(bias=bias, embedding=embedding, nearby={}, both=bias | embedding)[kind]
masks = dict(causal=True)
if kind == "nearby":
    masks = dict(nearby=Nearby(jnp.arange(B) % 2 == 0, context=5, front=0))
found = {}
for name, module in (("pallas_tpu", pallas_tpu), ("xla", reference)):
    def loss(q, k, v, tables):
        out = module.relative_attention(q, k, v, **masks, **tables)
        return jnp.sum(out.astype(jnp.float32))
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    try:
        memory = step.lower(*inputs, tables).compile().memory_analysis()
        found[name] = memory.temp_size_in_bytes
    except jax.errors.JaxRuntimeError as error:
        assert name == "xla" and "hbm" in str(error).lower(), error
        found[name] = None
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("topology", "kind"),
    [
        ("v5e:1x1", "bias"), ("v5p:2x2x1", "embedding"), ("v6e:1x1", "bias"),
        ("v5e:1x1", "nearby"), ("v5e:1x1", "both"),
    ],
)  # fmt: skip
def test_it_compiles_for_tpus_and_takes_a_twentieth_of_the_memory(topology, kind, compile_for_tpus):
    printed = compile_for_tpus(COMPILED, topology, kind)
    found = json.loads(printed.splitlines()[-1])
    # XLA finds no room at all on the smaller chips.
    assert found["xla"] is None or found["xla"] > 20 * found["pallas_tpu"], found
    assert found["pallas_tpu"] < 2**30


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from mgen.kernels import relative_attention as kernels
from mgen.nn.masks import Nearby
from mgen.sharding.mesh import make_mesh

rng = np.random.default_rng(0)
shapes = [(4, 2, 128, 16)] * 3 + [(2, 255)]
inputs = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]

def gradients(function, nearby=None):
    masks = dict(causal=nearby is None, window=0, sink=0, scale=0.25)
    def loss(q, k, v, bias):
        return jnp.sum(jnp.sin(function(q, k, v, bias, None, nearby, **masks)))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*inputs)

some = Nearby(jnp.asarray([True, False, False, True]), 5, 2)
expected = [gradients(kernels.reference.relative_attention, each) for each in (None, some)]
with jax.set_mesh(make_mesh("data=2,tensor=2", jax.devices())):
    kernel = lambda *given, **more: kernels.on_each_device(*given, interpret=True, **more)
    for function in (kernel, kernels.relative_attention):
        found = [gradients(function, each) for each in (None, some)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, expected)
"""


def test_on_a_mesh_it_is_the_same(run_on_four):
    run_on_four(ON_A_MESH)
