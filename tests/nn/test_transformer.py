"""The stack: scanned and unrolled layers agree, causality, dropout, remat."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.nn.transformer import Transformer, TransformerConfig, stack_layers, unstack_layers

CONFIG = TransformerConfig(dim=16, heads=4, kv_heads=2, layers=3, ff=24, cross=True, bias=True)
X = jax.random.normal(jax.random.key(0), (2, 5, 16))
MEMORY = jax.random.normal(jax.random.key(1), (2, 3, 16))
MASK = jnp.asarray([[True, True, False], [True, True, True]])


def build(config):
    params = Transformer(config).init(jax.random.key(2), X, MEMORY, MASK)["params"]
    # Away from the initial ones and zeros of norms and biases.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return tree.unflatten([p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys)])


def run(config, params, x=X, **kwargs):
    return Transformer(config).apply({"params": params}, x, MEMORY, MASK, **kwargs)


@pytest.mark.parametrize("norm, position", [("layer", "pre"), ("rms", "post")])
def test_scanned_equals_unrolled_with_gradients(norm, position):
    scanned = dataclasses.replace(CONFIG, norm=norm, norm_position=position, rotary=True)
    unrolled = dataclasses.replace(scanned, scan=False)
    params = build(scanned)

    def loss(config, params):
        return jnp.sum(run(config, params) ** 2)

    split = unstack_layers(params)
    np.testing.assert_allclose(run(scanned, params), run(unrolled, split), atol=1e-5)
    ours = unstack_layers(jax.grad(loss, argnums=1)(scanned, params))
    theirs = jax.grad(loss, argnums=1)(unrolled, split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4), ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(split), params)


def test_remat_changes_no_gradient():
    params = build(CONFIG)

    def gradient(config):
        return jax.grad(lambda p: jnp.sum(run(config, p) ** 2))(params)

    plain = gradient(CONFIG)
    for remat in ("full", "dots"):
        other = gradient(dataclasses.replace(CONFIG, remat=remat))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4), plain, other
        )


@pytest.mark.parametrize("causal", [True, False])
def test_causal_flag(causal):
    config = dataclasses.replace(CONFIG, causal=causal)
    params = build(config)
    changed = run(config, params, X.at[:, 3].add(1.0)) - run(config, params)
    assert bool(jnp.any(changed[:, :3] != 0)) is not causal
    assert jnp.all(jnp.any(changed[:, 3:] != 0, axis=-1))


def test_dropout_only_in_training():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    params = build(config)
    np.testing.assert_array_equal(run(config, params), run(CONFIG, params))
    noisy = [run(config, params, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    assert not np.allclose(*noisy)


def test_compute_dtype_leaves_parameters_float32():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    params = build(config)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = run(config, params)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), run(CONFIG, params), atol=0.2)


ENCODER = dataclasses.replace(
    CONFIG, causal=False, cross=False, gated=True, relative_buckets=8, relative_distance=16
)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_hidden_states_end_with_the_output(scan, norm_position):
    config = dataclasses.replace(ENCODER, scan=scan, norm_position=norm_position)
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    model = Transformer(config)
    variables = model.init(jax.random.key(0), x)
    hidden = model.apply(variables, x, method="hidden_states")
    assert hidden.shape == (config.layers + 1, 2, 5, 16)
    np.testing.assert_array_equal(hidden[0], x)
    np.testing.assert_allclose(hidden[-1], model.apply(variables, x), atol=1e-6)
    assert not np.allclose(hidden[1], hidden[2])


def test_masked_positions_do_not_reach_the_others_of_an_encoder():
    x = jax.random.normal(jax.random.key(1), (2, 6, 16))
    mask = jnp.arange(6)[None] < jnp.array([[6], [4]])
    model = Transformer(ENCODER)
    variables = model.init(jax.random.key(0), x)
    changed = x.at[1, 4:].add(1.0)
    a, b = (model.apply(variables, y, mask=mask) for y in (x, changed))
    np.testing.assert_allclose(a[1, :4], b[1, :4], atol=1e-6)
    assert not np.allclose(model.apply(variables, x)[1, :4], a[1, :4])
