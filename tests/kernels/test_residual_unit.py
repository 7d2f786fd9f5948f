"""The kernel against what it is: two convolutions and what is between them. Interpreted, with races
looked for, and compiled by the TPUs' own compiler."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mgen.codec.blocks import ResidualUnit
from mgen.codec.config import CodecConfig
from mgen.errors import UserError
from mgen.kernels import residual_unit as kernels
from mgen.kernels.residual_unit import Weights, pallas_tpu, reference

# name -> (batch, steps, channels, hidden), (taps, dilation, padding), activation, tile.
CASES = {
    "elu, causal, ragged": ((2, 300, 32, 16), (3, 1, (2, 0)), "elu", 128),
    "snake, symmetric": ((1, 256, 16, 16), (7, 9, (27, 27)), "snake", 128),
    "snake, causal, shorter than its reach": ((2, 50, 16, 16), (7, 9, (54, 0)), "snake", 128),
    "elu, odd padding, wide tile": ((1, 400, 16, 32), (3, 3, (1, 5)), "elu", 256),
    "snake, halo of two blocks": ((1, 600, 16, 16), (7, 27, (81, 81)), "snake", 256),
    "one tap": ((1, 130, 16, 16), (1, 1, (0, 0)), "elu", 128),
}


def draw(shape, taps, activation):
    batch, steps, channels, hidden = shape
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    weights = Weights(
        normal(taps, channels, hidden) / (taps * channels) ** 0.5,
        normal(hidden),
        normal(hidden, channels) / hidden**0.5,
        normal(channels),
    )
    if activation == "snake":
        alphas = 1 + 0.3 * normal(channels), 1 + 0.3 * normal(hidden)
        weights = weights._replace(alpha_0=alphas[0], alpha_1=alphas[1])
    return normal(batch, steps, channels), weights, normal(batch, steps, channels)


def of(case):
    shape, (taps, dilation, padding), activation, block = CASES[case]
    settings = dict(activation=activation, dilation=dilation, padding=padding)
    return draw(shape, taps, activation), settings, block


def races():
    return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


def races_found():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    return interpret_pallas_call.races.races_found


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(case):
    (x, weights, cotangent), settings, block = of(case)

    def both(function, **more):
        out, pull = jax.vjp(lambda *given: function(*given, **settings, **more), x, weights)
        return out, pull(cotangent)

    found = both(pallas_tpu.residual_unit, block=block, interpret=races())
    expected = both(reference.residual_unit)
    # Gradients of weights are float32 sums over up to 600 steps, up to 200 large.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-4), found[1][1],
        expected[1][1],
    )  # fmt: skip
    for a, b in ((found[0], expected[0]), (found[1][0], expected[1][0])):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert not races_found()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("activation", ["elu", "snake"])
def test_it_is_the_unit_of_the_codec(activation, causal):
    config = CodecConfig(
        sample_rate=16000, activation=activation, causal=causal, pad_mode="constant", norm="none"
    )
    unit = ResidualUnit(config, features=32, dilation=3)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 40, 32)), jnp.float32)
    params = unit.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda v: v + 0.1, params)
    conv_0, conv_1 = params["conv_0"], params["conv_1"]
    weights = Weights(
        conv_0["kernel"], conv_0["bias"], conv_1["kernel"][0], conv_1["bias"],
        *(params[name]["alpha"] for name in ("act_0", "act_1") if activation == "snake"),
    )  # fmt: skip
    padding = (6, 0) if causal else (3, 3)
    out = kernels.residual_unit(x, weights, activation=activation, dilation=3, padding=padding)
    np.testing.assert_array_equal(out, unit.apply({"params": params}, x))


def test_bfloat16_keeps_sums_in_float32():
    (x, weights, cotangent), settings, block = of("snake, symmetric")
    low, cotangent = x.astype(jnp.bfloat16), cotangent.astype(jnp.bfloat16)

    def both(function, x, **more):
        out, pull = jax.vjp(lambda *given: function(*given, **settings, **more), x, weights)
        return out, pull(cotangent.astype(x.dtype))

    found = both(pallas_tpu.residual_unit, low, block=block, interpret=True)
    assert found[0].dtype == found[1][0].dtype == jnp.bfloat16
    assert found[1][1].kernel_0.dtype == jnp.float32
    exact = both(reference.residual_unit, low.astype(jnp.float32))

    def error(a, b):
        return jnp.sqrt(jnp.mean((a.astype(jnp.float32) - b) ** 2) / jnp.mean(b**2))

    errors = jax.tree.map(error, found, exact)
    rounded = jax.tree.map(error, both(reference.residual_unit, low), exact)
    # The reference rounds each sum to bfloat16 too.
    assert all(e < 0.6 * r for e, r in zip(jax.tree.leaves(errors), jax.tree.leaves(rounded)))


def test_sine_and_cosine_hold_for_large_angles():
    angle = np.linspace(-3000, 3000, 100_001, dtype=np.float32)
    sine, cosine = pallas_tpu._sine_and_cosine(jnp.asarray(angle))
    exact = angle.astype(np.float64)
    np.testing.assert_allclose(sine * cosine, np.sin(exact) * np.cos(exact), atol=3e-7)
    np.testing.assert_allclose(sine * sine, np.sin(exact) ** 2, atol=3e-7)


def test_what_does_not_fit_is_refused():
    (x, weights, _), settings, _ = of("elu, causal, ragged")
    run = kernels.residual_unit
    with pytest.raises(UserError, match="bias_1 of shape"):
        run(x, weights._replace(bias_1=weights.bias_0), **settings)
    with pytest.raises(UserError, match="alpha_0 of shape None"):
        run(x, weights, **settings | dict(activation="snake"))
    with pytest.raises(UserError, match="activation 'relu'"):
        run(x, weights, **settings | dict(activation="relu"))
    with pytest.raises(UserError, match="expected 2 steps in all"):
        run(x, weights, **settings | dict(padding=(1, 0)))
    with pytest.raises(UserError, match="implementation 'fast'"):
        run(x, weights, **settings, implementation="fast")
    (x, narrow, _) = draw((1, 64, 8, 8), 3, "elu")
    with pytest.raises(UserError, match="multiples of 16"):
        run(x, narrow, **settings, implementation="pallas_tpu")
    expected = reference.residual_unit(x, narrow, **settings)
    np.testing.assert_allclose(run(x, narrow, **settings), expected, atol=1e-6)


COMPILED = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mgen import preflight
from mgen.kernels.residual_unit import Weights, pallas_tpu, reference

place = NamedSharding(Mesh(preflight.devices_of(sys.argv[1])[:1], ("x",)), P())
time_in_lanes = Format(Layout(major_to_minor=(0, 2, 1)), place)
B, T = 32, 8192

def compiled(module, backward, channels, hidden, taps, dilation, activation, dtype):
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
    x = jax.ShapeDtypeStruct((B, T, channels), dtype, sharding=time_in_lanes)
    alphas = (spec(channels), spec(hidden)) if activation == "snake" else ()
    weights = Weights(
        spec(taps, channels, hidden), spec(hidden), spec(hidden, channels), spec(channels), *alphas
    )
    reach = (taps - 1) * dilation
    settings = dict(activation=activation, dilation=dilation, padding=(reach // 2, reach // 2))
    run = lambda x, weights: module.residual_unit(x, weights, **settings)
    def both(x, weights, cotangent):
        out, pull = jax.vjp(run, x, weights)
        return out, pull(cotangent)
    if backward:
        step = jax.jit(both, out_shardings=(time_in_lanes, (time_in_lanes, place)))
        return step.lower(x, weights, x).compile()
    return jax.jit(run, out_shardings=time_in_lanes).lower(x, weights).compile()

found = {}
for case in ((32, 16, 3, 1, "elu", jnp.bfloat16), (192, 192, 7, 9, "snake", jnp.float32)):
    size = B * T * case[0] * jnp.dtype(case[-1]).itemsize
    step = compiled(pallas_tpu, True, *case)
    found[f"temporary {case[0]}"] = step.memory_analysis().temp_size_in_bytes / size
modules = dict(pallas_tpu=pallas_tpu, xla=reference) if sys.argv[1].startswith("v5e") else {}
for name, module in modules.items():
    step = compiled(module, False, 64, 64, 7, 9, "snake", jnp.bfloat16)
    found[f"bytes {name}"] = step.cost_analysis()["bytes accessed"] / (B * T * 64 * 2)
print(json.dumps(found))
"""


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
def test_it_compiles_for_tpus_and_keeps_nothing(topology, compile_for_tpus):
    printed = compile_for_tpus(COMPILED, topology)
    found = json.loads(printed.splitlines()[-1])
    # Nothing of the signal's size is kept between the kernels, and turning time into lanes is free.
    assert found["temporary 32"] < 0.1 and found["temporary 192"] < 0.1, found
    if topology.startswith("v5e"):
        assert found["bytes xla"] > 4 * found["bytes pallas_tpu"], found


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from mgen.kernels import residual_unit as kernels
from mgen.sharding.mesh import make_mesh

rng = np.random.default_rng(0)
shapes = [(4, 150, 16), (3, 16, 16), (16,), (16, 16), (16,), (16,), (16,)]
x, *weights = [jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32) for shape in shapes]
weights = kernels.Weights(*weights)
weights = weights._replace(alpha_0=1 + weights.alpha_0, alpha_1=1 + weights.alpha_1)
settings = dict(activation="snake", dilation=3, padding=(3, 3))

def gradients(function):
    loss = lambda x, weights: jnp.sum(jnp.sin(function(x, weights, **settings)))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, weights)

expected = gradients(kernels.reference.residual_unit)
with jax.set_mesh(make_mesh("data=2,tensor=2", jax.devices())):
    kernel = lambda *given, **more: kernels.on_each_device(*given, interpret=True, **more)
    for found in (gradients(kernel), gradients(kernels.residual_unit)):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-5)
        jax.tree.map(close, found, expected)
"""


def test_on_a_mesh_it_is_the_same(run_on_four):
    run_on_four(ON_A_MESH)
