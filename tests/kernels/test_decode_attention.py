"""The kernel against attention to the whole cache. Interpreted, with races looked for and nothing
behind the filled part but NaN; compiled by the TPUs' own compiler."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mgen.errors import UserError
from mgen.kernels import decode_attention as kernels
from mgen.kernels.decode_attention import pallas_tpu

# name -> batch, heads of queries and of keys, capacity, width, filled, rows of mask and of bias (0:
# none).
CASES = {
    "heads of their own, ragged": (3, 4, 4, 300, 8, 150, 3, 0),
    "shared heads, bias": (2, 4, 2, 300, 16, 257, 2, 1),
    "full, a bias each": (2, 4, 1, 256, 8, 256, 1, 2),
    "one position": (2, 2, 2, 200, 8, 1, 1, 1),
    "less than a block": (1, 2, 2, 40, 8, 17, 1, 0),
    "wide heads": (2, 4, 2, 300, 128, 150, 2, 1),
}


def draw(batch, heads, groups, capacity, width, filled, shown, shifted):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    query, key = normal(batch, heads, 1, width), normal(batch, groups, capacity, width)
    value = normal(batch, groups, capacity, width)
    mask = (rng.random((shown, 1, capacity)) < 0.7) & (np.arange(capacity) < filled)
    mask[:, :, filled - 1] = True
    bias = normal(shifted, heads, 1, capacity) if shifted else None
    return query, key, value, jnp.int32(filled), jnp.asarray(mask), bias


@pytest.fixture
def small_blocks(monkeypatch):
    """Of 128 positions, so that small caches have several."""
    monkeypatch.setattr(pallas_tpu, "BLOCK_BYTES", 1)


@pytest.mark.parametrize("case", CASES)
def test_it_is_attention_to_the_filled_part(case, small_blocks):
    query, key, value, filled, mask, bias = draw(*CASES[case])
    expected = kernels.cached_attention(query, key, value, mask, bias)[:, :, 0]
    behind = jnp.arange(key.shape[2])[:, None] >= filled
    key, value = (jnp.where(behind, jnp.nan, x) for x in (key, value))
    short = None if bias is None else bias[:, :, 0]
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    out = pallas_tpu.decode_attention(
        query[:, :, 0], key, value, filled, mask[:, 0], short, interpret=interpret
    )
    # Float32 sums over blocks in another order, values of order 1.
    np.testing.assert_allclose(out, expected, atol=3e-6)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


def test_what_does_not_fit_is_refused():
    query, *given = draw(*CASES["one position"])
    with pytest.raises(UserError, match="implementation 'fast'"):
        kernels.decode_attention(query, *given, implementation="fast")
    with pytest.raises(UserError, match="query of 2 positions"):
        two = jnp.concatenate([query, query], axis=2)
        kernels.decode_attention(two, *given, implementation="pallas_tpu")
    filled = given[2]
    expected = kernels.cached_attention(query, *given[:2], *given[3:])
    found = kernels.decode_attention(query, *given[:2], filled, *given[3:])
    np.testing.assert_array_equal(found, expected)


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from mgen.kernels import decode_attention as kernels
from mgen.sharding.mesh import make_mesh

rng = np.random.default_rng(0)
shapes = (4, 4, 8), (4, 2, 200, 8), (4, 2, 200, 8), (1, 4, 200)
query, key, value, bias = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
mask = jnp.asarray(rng.random((4, 200)) < 0.7).at[:, 0].set(True) & (jnp.arange(200) < 150)
given = query, key, value, jnp.int32(150), mask, bias
short = lambda x: x[:, :, None]
expected = kernels.cached_attention(short(query), key, value, mask[:, None], short(bias))[:, :, 0]
with jax.set_mesh(make_mesh("data=2,tensor=2", jax.devices())):
    kernel = jax.jit(lambda *given: kernels.on_each_device(*given, interpret=True))
    np.testing.assert_allclose(kernel(*given), expected, atol=3e-6)
"""


def test_on_a_mesh_it_is_the_same(run_on_four):
    run_on_four(ON_A_MESH)


COMPILED = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from mgen import preflight
from mgen.kernels import decode_attention as kernels

device = preflight.devices_of(sys.argv[1])[:1]
mesh = Mesh(device, ("x",), axis_types=(AxisType.Auto,))
place = NamedSharding(mesh, P())
spec = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
jax.set_mesh(mesh)

def step(query, key, value, new, filled, mask, bias, implementation):
    corner = (0, 0, filled - 1, 0)
    key = jax.lax.dynamic_update_slice(key, new, corner)
    value = jax.lax.dynamic_update_slice(value, new, corner)
    given = query, key, value, filled, mask, bias
    return kernels.decode_attention(*given, implementation=implementation), key, value

found = {}
# MusicGen small, eight clips with guidance; T5's bias; grouped keys of 128.
for batch, heads, groups, length, width, biased in (
    (16, 16, 16, 1503, 64, False), (16, 16, 16, 1536, 64, True), (8, 32, 8, 4096, 128, False)
):
    cache = spec(batch, groups, length, width)
    given = (
        spec(batch, heads, 1, width), cache, cache, spec(batch, groups, 1, width),
        spec(dtype=jnp.int32), spec(batch, 1, length, dtype=jnp.bool_),
        spec(1, heads, 1, length) if biased else None,
    )
    for implementation in kernels.IMPLEMENTATIONS:
        run = jax.jit(step, static_argnums=7, donate_argnums=(1, 2))
        compiled = run.lower(*given, implementation).compile()
        size = 2 * batch * groups * length * width * 4
        found[f"{implementation} {width} {biased}"] = (
            compiled.cost_analysis()["bytes accessed"] / size,
            compiled.memory_analysis().temp_size_in_bytes / size,
        )
print(json.dumps(found))
"""


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
def test_it_compiles_for_tpus_and_copies_no_cache(topology, compile_for_tpus):
    printed = compile_for_tpus(COMPILED, topology)
    found = json.loads(printed.splitlines()[-1])
    for name, (moved, kept) in found.items():
        if name.startswith("pallas_tpu"):
            # Beside what the kernel reads of the cache: the tiles that the new position lies in.
            assert moved < 0.4 and kept < 0.1, found
        else:
            assert moved > 0.9, found
