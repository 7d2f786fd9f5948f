"""The Conformer stack: scanned and unrolled layers agree, positions, convolutions against XLA's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.nn.conformer import (
    Conformer,
    ConformerConfig,
    DepthwiseConv,
    RelativeAttention,
    distance_table,
)
from mgen.nn.transformer import stack_layers, unstack_layers

CONFIG = ConformerConfig(dim=12, heads=2, layers=2, ff=20, kernel_size=5, left=3, right=2)
X = jax.random.normal(jax.random.key(0), (2, 7, 12))


def build(module, *inputs):
    variables = jax.jit(module.init)(jax.random.key(2), *inputs)
    # Away from the initial ones and zeros of norms and biases.
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda p: np.asarray(p) + 0.2 * rng.random(p.shape, np.float32), variables)


@pytest.mark.parametrize(
    "fields",
    [
        dict(positions="relative"),
        dict(positions="rotary", conv_norm="batch", final_norm=True),
        dict(positions="relative_key", causal_conv=True),
    ],
)
def test_scanned_equals_unrolled_with_gradients(fields):
    scanned = dataclasses.replace(CONFIG, **fields)
    unrolled = dataclasses.replace(scanned, scan=False, remat="full")
    variables = build(Conformer(scanned), X)
    split = {name: unstack_layers(tree) for name, tree in variables.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, variables):
        """Hidden states, output, gradient of one loss."""

        def loss(params):
            own = {**variables, "params": params}
            states = Conformer(config).apply(own, X, method="hidden_states")
            out = Conformer(config).apply(own, X)
            return jnp.sum(out**2), (states, out)

        grads, (states, out) = jax.grad(loss, has_aux=True)(variables["params"])
        return states, out, grads

    states, out, ours = run(scanned, variables)
    assert states.shape == (3, *X.shape)
    np.testing.assert_array_equal(states[0], X)
    np.testing.assert_allclose(states[-1], out, atol=1e-5)
    other_states, _, theirs = run(unrolled, split)
    np.testing.assert_allclose(states, other_states, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-3),
        unstack_layers(ours),
        theirs,
    )
    jax.tree.map(np.testing.assert_array_equal, stack_layers(split["params"]), variables["params"])


def test_distance_table_is_that_of_the_distance():
    table = distance_table(4, 6)
    assert table.shape == (7, 6)
    np.testing.assert_allclose(table[3], [0, 1, 0, 1, 0, 1])  # distance 0
    np.testing.assert_allclose(table[0, :2], [np.sin(3), np.cos(3)], atol=1e-6)


@pytest.mark.parametrize("positions", ["rotary", "relative", "relative_key", "none"])
def test_only_attention_without_positions_commutes_with_permutations(positions):
    module = RelativeAttention(dataclasses.replace(CONFIG, positions=positions))
    variables = build(module, X)
    order = np.asarray([3, 1, 0, 2, 6, 5, 4])
    run = jax.jit(module.apply)
    out, permuted = run(variables, X), run(variables, X[:, order])
    same = np.allclose(out[:, order], permuted, atol=1e-5)
    assert same == (positions == "none")


COMPILED = """
import dataclasses
import jax, jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from mgen import preflight
from mgen.nn.conformer import POSITIONS, ConformerConfig, RelativeAttention

mesh = Mesh(preflight.devices_of("v5e:1x1")[:1], ("x",), axis_types=(AxisType.Auto,))
place = NamedSharding(mesh, P())
config = ConformerConfig(dim=256, heads=4, layers=1, ff=1, dtype="bfloat16")
x = jax.ShapeDtypeStruct((2, 4096, 256), jnp.bfloat16, sharding=place)
for positions in POSITIONS:
    layer = RelativeAttention(dataclasses.replace(config, positions=positions))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=place), params)
    loss = lambda params, x: jnp.square(layer.apply(params, x)).sum()
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    print(compiled.memory_analysis().temp_size_in_bytes)
"""


def test_no_scores_are_kept_on_tpus(compile_for_tpus):
    """Of 2 examples and 4 heads they would be 256 MiB and more: too many for the chip's VMEM."""
    kept = [int(line) for line in compile_for_tpus(COMPILED).split()[-4:]]
    assert max(kept) < 2 * 4 * 4096**2 * 2, kept


def test_shaw_distances_are_clipped():
    config = dataclasses.replace(CONFIG, positions="relative_key")
    module = RelativeAttention(config)
    variables = build(module, X)
    table = variables["params"]["distance"]
    query = jnp.einsum("bld,dhk->blhk", X, variables["params"]["query"]["kernel"])
    query = query + variables["params"]["query"]["bias"][None, None]
    key = jnp.einsum("bld,dhk->blhk", X, variables["params"]["key"]["kernel"])
    key = key + variables["params"]["key"]["bias"][None, None]
    value = jnp.einsum("bld,dhk->blhk", X, variables["params"]["value"]["kernel"])
    value = value + variables["params"]["value"]["bias"][None, None]
    row, column = np.mgrid[:7, :7]
    distance = np.clip(column - row, -3, 2) + 3
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    scores = scores + jnp.einsum("bqhd,qkd->bhqk", query, table[distance])
    weights = jax.nn.softmax(scores / np.sqrt(6), axis=-1)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    out = jnp.einsum("bqhd,hdo->bqo", out, variables["params"]["out"]["kernel"])
    out = out + variables["params"]["out"]["bias"][None, None]
    np.testing.assert_allclose(module.apply(variables, X), out, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [1, 5])
def test_depthwise_convolution(causal, size):
    module = DepthwiseConv(size, causal)
    variables = build(module, X)
    left = size - 1 if causal else size // 2
    expected = jax.lax.conv_general_dilated(
        X,
        variables["params"]["kernel"][:, None],
        (1,),
        [(left, size - 1 - left)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=12,
    )
    np.testing.assert_allclose(module.apply(variables, X), expected, atol=1e-5)


def test_batch_norm_uses_stored_statistics_in_training_too():
    config = dataclasses.replace(CONFIG, conv_norm="batch", layers=1)
    module = Conformer(config)
    variables = build(module, X)
    run = jax.jit(functools.partial(module.apply, train=True))
    alone = run(variables, np.concatenate([X[:1], X[:1]]))
    np.testing.assert_allclose(run(variables, X)[:1], alone[:1], atol=1e-5)
    moved = jax.tree.map(lambda s: s + 1.0, variables["batch_stats"])
    other = run({**variables, "batch_stats": moved}, X)
    assert not np.allclose(other[:1], alone[:1], atol=1e-2)
    assert "batch_stats" not in jax.eval_shape(Conformer(CONFIG).init, jax.random.key(0), X)


def test_dropout_only_in_training():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    module = Conformer(config)
    variables = build(module, X)
    np.testing.assert_array_equal(module.apply(variables, X), Conformer(CONFIG).apply(variables, X))
    noisy = [
        module.apply(variables, X, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)
    ]
    assert not np.allclose(*noisy)


def test_compute_dtype_leaves_parameters_float32():
    module = Conformer(dataclasses.replace(CONFIG, dtype="bfloat16"))
    variables = build(module, X)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert jax.eval_shape(module.apply, variables, X).dtype == jnp.bfloat16
