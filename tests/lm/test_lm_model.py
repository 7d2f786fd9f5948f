"""The language model: causality, conditions, scanned and unrolled layers, its config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.lm.condition import Condition, absent, complete, drop
from mgen.lm.config import LMConfig
from mgen.lm.model import LM, OUTSIDE, stack_layers


@pytest.fixture(scope="module")
def model(case, small):
    """(config, jitted logits of (codes, condition))."""
    config, params = case
    return config, jax.jit(lambda *inputs: LM(config).apply({"params": params}, *inputs))


def test_a_code_changes_no_logits_of_its_step_or_before(model, small):
    config, logits = model
    codes, condition = small.codes_of(config), small.condition_of(config)
    layout, before = config.make_layout(), np.asarray(logits(codes, condition))
    schedule = layout.schedule(small.F)

    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, small.F - 1), st.integers(0, 2), st.integers(0, 4))
    def law(frame, codebook, value):
        changed = codes.at[:, frame, codebook].set(value)
        differs = np.any(before != np.asarray(logits(changed, condition)), axis=-1)
        later = schedule > schedule[frame, codebook]
        if config.depth_layers:
            # Within a frame the codebooks follow one another.
            later |= (np.arange(small.F)[:, None] == frame) & (np.arange(3)[None] > codebook)
        assert not differs[:, ~later].any()
        moved = np.asarray(codes[:, frame, codebook] != value)
        np.testing.assert_array_equal(differs[:, later].any(1), moved & later.any())

    law()


def test_every_condition_matters_and_masked_vectors_do_not(model, small):
    config, logits = model
    codes, condition = small.codes_of(config), small.condition_of(config)
    base, nothing = logits(codes, condition), absent(config, condition)
    for name in ("attributes", "mask", "front_mask", "prefix", "aligned"):
        if jax.tree.leaves(getattr(condition, name)):
            changed = condition.replace(**{name: getattr(nothing, name)})
            assert not np.allclose(logits(codes, changed), base, atol=1e-3), name
    if condition.vectors is not None:
        hidden = jnp.where(condition.mask[..., None], condition.vectors, 50.0)
        same = logits(codes, condition.replace(vectors=hidden))
        np.testing.assert_allclose(same, base, atol=1e-5)


def test_no_vectors_are_fully_masked_ones_without_biases(small):
    config, params = small.BASE, small.random_params(small.BASE)
    codes, condition = small.codes_of(config), small.condition_of(config)
    apply = jax.jit(lambda c: LM(config).apply({"params": params}, codes, c))
    masked = condition.replace(mask=jnp.zeros_like(condition.mask))
    none = condition.replace(vectors=None, mask=None)
    np.testing.assert_allclose(apply(masked), apply(none), atol=1e-5)


def test_scanned_equals_unrolled(case, small):
    config, params = case
    inputs = small.codes_of(config), small.condition_of(config)
    scanned = dataclasses.replace(config, scan=True)
    ours, theirs = (
        jax.jit(lambda p, c=c: LM(c).apply({"params": p}, *inputs))(p)
        for c, p in ((config, params), (scanned, stack_layers(params)))
    )
    # Logits up to 5 through two layers, fused in another order.
    np.testing.assert_allclose(ours, theirs, atol=5e-5)


def test_codes_beyond_a_smaller_codebook_are_impossible(small):
    config = small.VARIANTS["musiclm"]
    params = small.random_params(config)
    logits = LM(config).apply(
        {"params": params}, small.codes_of(config), small.condition_of(config)
    )
    for k, size in enumerate(config.sizes):
        assert np.all(logits[:, :, k, size:] == OUTSIDE) and np.all(
            logits[:, :, k, :size] > OUTSIDE
        )


def test_masked_model_sees_both_sides(small):
    config = dataclasses.replace(
        small.BASE, objective="masked", layout="parallel", condition_width=0, attribute_sizes=()
    )
    params = small.random_params(config)
    codes = small.codes_of(config)
    hidden = codes.at[:, 2].set(jnp.asarray(config.sizes))
    apply = jax.jit(lambda codes: LM(config).apply({"params": params}, codes))
    base = apply(hidden)
    for frame in (0, 4):
        changed = apply(hidden.at[:, frame, 1].add(-1))
        assert np.all(np.any(base[:, 2] != changed[:, 2], axis=(1, 2)))
    # What is hidden has no influence: the special token stands for every code.
    np.testing.assert_array_equal(base, apply(codes.at[:, 2].set(jnp.asarray(config.sizes))))


def test_condition_dropout_rates(small):
    n, config = 4000, dataclasses.replace(small.VARIANTS["musiclm"], condition_width=6)
    condition = Condition(
        attributes=jnp.ones((n, 2), jnp.int32),
        vectors=jnp.ones((n, 2, 6)),
        mask=jnp.ones((n, 2), bool),
        prefix=(jnp.ones((n, 1, 2), jnp.int32), jnp.ones((n, 3, 1), jnp.int32)),
    )
    dropped = drop(config, jax.random.key(0), condition, 0.2, 0.5)
    fields, gone = np.asarray(dropped.attributes), ~np.asarray(dropped.mask).any(axis=1)
    # Four standard deviations.
    assert abs(gone.mean() - 0.2) < 4 * np.sqrt(0.16 / n)
    assert abs(fields[~gone].mean() - 0.5) < 4 * np.sqrt(0.25 / (2 * n))
    assert not fields[gone].any() and not dropped.vectors[gone].any()
    # All of an example's condition goes at once.
    for codes, size in zip(dropped.prefix, (7, 5)):
        assert np.all(codes[gone] == size) and np.all(codes[~gone] == 1)
    same = drop(config, jax.random.key(0), condition, 0.0, 0.0)
    jax.tree.map(np.testing.assert_array_equal, same, condition)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(attributes=np.asarray([[3, 0]] * 3)), "attributes: a value lies outside"),
        (dict(attributes=np.zeros((2, 2), int)), "attributes: shape is (2, 2)"),
        (dict(vectors=np.zeros((3, 4, 5))), "condition: shape is (3, 4, 5)"),
        (dict(front=(np.zeros((3, 4, 5)),)), "front: 1 sequences of vectors and 1 masks, exp"),
        (dict(prefix=()), "prefix: 0 sequences of codes, expected 2"),
        (
            dict(prefix=(np.zeros((3, 2, 2), int), np.zeros((3, 2, 2), int))),
            "prefix 1: shape is (3, 2, 2), expected (3, length, 1)",
        ),
        (
            dict(prefix=(np.full((3, 2, 2), 8), np.zeros((3, 2, 1), int))),
            "prefix 0: a value lies outside",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(small, change, message):
    config = dataclasses.replace(small.VARIANTS["musiclm"], condition_width=6)
    condition = small.condition_of(config).replace(**change)
    with pytest.raises(UserError) as error:
        complete(config, condition, 3, small.F)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_config_from_dict(small):
    config = small.VARIANTS["musiclm"]
    fields = dataclasses.asdict(config) | {"sizes": [11, 9, 5], "prefix": [[7, 7], [5]]}
    assert LMConfig.from_config(fields) == config
    assert hash(LMConfig.from_config(fields)) == hash(config)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(depth=3), "model.depth: unknown field"),
        (dict(positions="t5"), "model.positions is 't5', expected one of"),
        (dict(heads=5), "model.heads is 5"),
        (dict(kv_heads=3), "model.kv_heads is 3"),
        (dict(layout="spiral"), "layout is 'spiral'"),
        (dict(delays=(0, 1)), "expected 3 numbers"),
        (dict(sink=2), "model.sink is 2, expected 0 where window is 0"),
        (dict(depth_layers=1, depth_dim=8, depth_heads=2), "expected 'parallel' with depth_layers"),
        (dict(objective="masked"), "expected 'parallel' with objective 'masked'"),
        (dict(context=5), "model.context is 5, expected 0 except with objective 'masked'"),
    ],
)
def test_bad_config_is_refused_in_one_line(small, change, message):
    with pytest.raises(UserError) as error:
        LMConfig.from_config(dataclasses.asdict(small.BASE) | change)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_field_is_named():
    with pytest.raises(UserError, match=r"model\.sizes: missing"):
        LMConfig.from_config({"dim": 2})
