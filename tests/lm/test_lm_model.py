"""The language model: causality, the cached step, scanned and unrolled layers, its config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.lm import decode
from mgen.lm.model import LM, LMConfig, stack_layers, unstack_layers

BASE = LMConfig(
    num_codebooks=3,
    codebook_size=11,
    dim=16,
    heads=4,
    layers=2,
    ff=24,
    condition_width=6,
    attribute_sizes=(3, 5),
)
VARIANTS = {
    "musicgen": BASE,
    "llama-like": dataclasses.replace(
        BASE, positions="rope", norm="rms", kv_heads=2, activation="silu"
    ),
    "post-norm": dataclasses.replace(
        BASE, norm_position="post", positions="none", bias=True, activation="relu", scan=False
    ),
    "unconditional": dataclasses.replace(BASE, condition_width=0, attribute_sizes=()),
}
B, L = 2, 7
TOKENS = jax.random.randint(jax.random.key(0), (B, L, 3), 0, 12)
CONDITION = decode.Condition(
    attributes=jnp.asarray([[1, 2], [0, 4]]),
    vectors=jax.random.normal(jax.random.key(1), (B, 4, 6)),
    mask=jnp.asarray([[True, True, False, False], [True] * 4]),
)


def random_params(config, key=0):
    params = LM(config).init(
        jax.random.key(key), TOKENS, CONDITION.attributes, CONDITION.vectors, CONDITION.mask
    )["params"]
    # Away from the initial ones and zeros of norms and biases.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    noise = [0.2 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys)]
    return tree.unflatten([p + n for p, n in zip(leaves, noise)])


def full(config, params, tokens=TOKENS, condition=CONDITION):
    parts = condition.attributes, condition.vectors, condition.mask
    return LM(config).apply({"params": params}, tokens, *parts)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request):
    config = VARIANTS[request.param]
    return config, random_params(config)


PARAMS = random_params(BASE)
FORWARD = jax.jit(lambda tokens: full(BASE, PARAMS, tokens))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, L - 1), st.integers(0, 2), st.integers(0, 11))
def test_a_token_never_changes_logits_before_it(position, stream, value):
    changed = TOKENS.at[:, position, stream].set(value)
    before, after = FORWARD(TOKENS), FORWARD(changed)
    # The input at a position is the sequence one step late: logits at that position may change.
    np.testing.assert_array_equal(before[:, :position], after[:, :position])
    differs = np.asarray(TOKENS[:, position, stream] != value)
    np.testing.assert_array_equal(np.any(before != after, axis=(1, 2, 3)), differs)


def test_every_condition_matters_and_masked_vectors_do_not():
    base = full(BASE, PARAMS)
    for change in (
        dict(attributes=CONDITION.attributes.at[:, 1].set(0)),
        dict(vectors=CONDITION.vectors.at[:, 0].add(1.0)),
        dict(mask=CONDITION.mask.at[:, 0].set(False)),
    ):
        assert not np.allclose(full(BASE, PARAMS, condition=CONDITION.replace(**change)), base)
    hidden = CONDITION.vectors.at[0, 2:].set(50.0)
    same = full(BASE, PARAMS, condition=CONDITION.replace(vectors=hidden))
    np.testing.assert_allclose(same, base, atol=1e-6)


def test_no_condition_is_a_fully_masked_one_without_biases():
    params = random_params(VARIANTS["musicgen"])
    masked = CONDITION.replace(mask=jnp.zeros_like(CONDITION.mask))
    absent = CONDITION.replace(vectors=None, mask=None)
    np.testing.assert_allclose(
        full(BASE, params, condition=masked), full(BASE, params, condition=absent), atol=1e-5
    )


def test_scanned_equals_unrolled(case):
    config, params = case
    other = dataclasses.replace(config, scan=not config.scan)
    converted = stack_layers(params) if other.scan else unstack_layers(params)
    np.testing.assert_allclose(full(config, params), full(other, converted), atol=1e-5)


def test_cached_steps_equal_the_full_forward(case):
    config, params = case
    weights = decode.arrange(config, params)
    expected = full(config, params)
    step = jax.jit(decode.step, static_argnums=0)
    cache = decode.init_cache(config, weights, CONDITION, B, L)
    for i in range(L):
        logits, cache = step(config, weights, cache, CONDITION, TOKENS[:, i], jnp.int32(i))
        # Other summation orders of 16 to 24 float32 terms.
        np.testing.assert_allclose(logits, expected[:, i], atol=1e-5)


def test_prefill_then_step_equals_the_full_forward(case):
    config, params = case
    weights = decode.arrange(config, params)
    cache = decode.init_cache(config, weights, CONDITION, B, L - 2)
    _, cache = decode.forward(config, weights, cache, CONDITION, TOKENS[:, : L - 2], 0)
    cache = decode.grow_cache(cache, L)
    expected = full(config, params)
    for i in (L - 2, L - 1):
        logits, cache = decode.step(config, weights, cache, CONDITION, TOKENS[:, i], jnp.int32(i))
        np.testing.assert_allclose(logits, expected[:, i], atol=1e-5)


def test_config_from_dict():
    fields = dataclasses.asdict(BASE) | {"attribute_sizes": [3, 5]}
    assert LMConfig.from_config(fields) == BASE
    assert hash(LMConfig.from_config(fields)) == hash(BASE)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(depth=3), "model.depth: unknown field"),
        (dict(positions="t5"), "model.positions is 't5', expected one of"),
        (dict(heads=5), "model.heads is 5"),
        (dict(kv_heads=3), "model.kv_heads is 3"),
        (dict(layout="spiral"), "layout is 'spiral'"),
        (dict(delays=(0, 1)), "expected 3 numbers"),
    ],
)
def test_bad_config_is_refused_in_one_line(change, message):
    with pytest.raises(UserError) as error:
        LMConfig.from_config(dataclasses.asdict(BASE) | change)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_field_is_named():
    with pytest.raises(UserError, match=r"model\.codebook_size: missing"):
        LMConfig.from_config({"num_codebooks": 2})
