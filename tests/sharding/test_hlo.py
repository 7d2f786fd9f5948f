"""Bytes counted from programs that move a known number of them."""

import jax
import jax.numpy as jnp
import pytest

from mgen.sharding import hlo

EIGHT_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from mgen.sharding import hlo
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
found = hlo.Program.parse(compiled.as_text()).collective_bytes()
print(found)
assert list(found) == ["all-gather"]
# A product [4, 64] of every layer, or what it is made of.
assert found["all-gather"] in (6 * 4 * 64 * 4, 6 * 64 * 64 * 4), found
"""


def test_collectives_of_a_loop(run_python):
    run_python(EIGHT_DEVICES)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%a = f32[8,16]{1,0} all-gather(%p), dimensions={0}", {"all-gather": 512}),
        ("%a = (f32[2]{0}, f32[16]{0}) all-gather-start(%p)", {"all-gather": 64}),
        ("%a = (f32[8]{0}, f32[4]{0}) all-gather(%p, %p)", {"all-gather": 48}),
        ("%a = f32[2]{0} all-reduce-start(%p), to_apply=%sum", {"all-reduce": 16}),
        ("%a = pred[7]{0} all-reduce(%p), to_apply=%sum", {"all-reduce": 2 * 7}),
        ("%a = f32[1]{0} reduce-scatter(%p), to_apply=%sum", {"reduce-scatter": 8}),
        ("%a = f32[8]{0} add(%p, %q)", {}),
    ],
)
def test_sizes_of_results(line, expected):
    text = "%sum (x: f32[]) -> f32[] {\n}\nENTRY %main (p: f32[2]) -> f32[8] {\n"
    text += f"  %p = f32[2]{{0}} parameter(0)\n  {line}\n}}\n"
    assert hlo.Program.parse(text).collective_bytes() == pytest.approx(expected)


def test_traffic_of_a_product():
    """Two matrices are read and one is written; the names and layouts are the compiler's."""
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 512), (512, 128)))
    text = jax.jit(lambda x, w: x @ w).lower(x, w).compile().as_text()
    expected = 4 * (256 * 512 + 512 * 128 + 256 * 128)
    assert hlo.Program.parse(text).traffic() == pytest.approx(expected, rel=0.01)


CONTROL = """
%body (s: (s32[], f32[9,1024])) -> (s32[], f32[9,1024]) {{
  %s = (s32[], f32[9,1024]{{1,0}}) parameter(0)
  %two = s32[] constant(2)
  %i = s32[] get-tuple-element(%s), index=0
  %j = s32[] add(%i, %two)
  %x = f32[9,1024]{{1,0}} get-tuple-element(%s), index=1
  %row = f32[1,1024]{{1,0}} dynamic-slice(%x, %i, %two), dynamic_slice_sizes={{1,1024}}
  %y = f32[9,1024]{{1,0}} dynamic-update-slice(%x, %row, %i, %two)
  ROOT %t = (s32[], f32[9,1024]{{1,0}}) tuple(%j, %y)
}}

%condition (s: (s32[], f32[9,1024])) -> pred[] {{
  %s = (s32[], f32[9,1024]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %limit), direction={direction}
}}

ENTRY %main (s: (s32[], f32[9,1024])) -> (s32[], f32[9,1024]) {{
  %s = (s32[], f32[9,1024]{{1,0}}) parameter(0)
  ROOT %loop = (s32[], f32[9,1024]{{1,0}}) while(%s), condition=%condition, body=%body
}}
"""


@pytest.mark.parametrize(
    ("direction", "expected"),
    # Five rows (0, 2, ... 8) are sliced and five written back, each read and written once; where
    # the condition does not say how often, as often as told. A turn of the
    # counter is 12 bytes, its test 9.
    [("LT", 5), ("NE", 7)],
)
def test_loops_run_as_often_as_their_condition_says(direction, expected):
    text = CONTROL.format(direction=direction)
    moved = hlo.Program.parse(text, trips=7).traffic()
    assert moved == expected * (4 * 4096 + 21)


FOR_TPUS = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from mgen import preflight
from mgen.sharding import hlo
from mgen.sharding.mesh import make_mesh

devices = preflight.devices_of("v5e:2x4")
mesh = make_mesh("fsdp=8", devices)

def layers(x, weights):
    def layer(x, w):
        return jnp.tanh(x @ w.astype(jnp.bfloat16)), None
    return jax.lax.scan(layer, x, weights)[0]

def shape(spec, *dims, dtype):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))

x = shape(P("fsdp"), 8 * 1024, 2048, dtype=jnp.bfloat16)
weights = shape(P(None, "fsdp"), 6, 2048, 2048, dtype=jnp.float32)
compiled = jax.jit(layers).lower(x, weights).compile()
program = hlo.Program.parse(compiled.as_text())
links = sum(program.collective_bytes().values())
# Each layer's matrix arrives in bfloat16, seven eighths of it in theory.
assert 0.8 <= links / (6 * 2048 * 2048 * 2) <= 1.2, (links, program.collective_bytes())
# The activations once a layer at most, the own part of the matrices in float32 once, gathered ones
# at most written and read.
least = 6 * 2048 * 256 * 4
most = 6 * (2 * 1024 * 2048 * 2 + 3 * 2048 * 2048 * 2 + 2 * 2048 * 256 * 4)
assert least <= program.traffic() <= most, (program.traffic(), least, most)
"""


FETCHED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mgen import preflight
from mgen.sharding import hlo

place = NamedSharding(Mesh(np.array(preflight.devices_of("v5e:1x1")[:1]), ("x",)), P())

def layers(x, weights):
    for wide, back in weights:
        x = x + back @ jax.nn.gelu(wide @ x)
    return x

def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=place)

weights = [(shape(4096, 1024), shape(1024, 4096)) for _ in range(8)]
text = jax.jit(layers).lower(shape(1024, 2), weights).compile().as_text()
# Or it would not be what is to be counted.
assert "slice-start(" in text and "copy-start(" in text
whole = 16 * 4096 * 1024 * 4
# One more matrix than there are is fetched, for the program's next run.
traffic = hlo.Program.parse(text).traffic()
assert whole <= traffic <= 1.01 * whole * 17 / 16, traffic / whole
"""


def test_what_is_fetched_beforehand_is_read_once(compile_for_tpus):
    compile_for_tpus(FETCHED)


def test_loops_of_the_compiler_of_tpus(compile_for_tpus):
    compile_for_tpus(FOR_TPUS)
