"""Masked models: what training hides, and generation by confidence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.lm import masked
from mgen.lm.condition import absent
from mgen.lm.filters import SamplingConfig
from mgen.lm.masked import FrozenMasked, MaskingConfig, training_masks
from mgen.lm.model import LM, stack_layers

SEEDS = np.asarray([5, 6, 7])
SAMPLING = SamplingConfig(top_k=7, guidance=2.0)


@pytest.fixture(scope="module")
def model(small):
    """(config, params, condition) of a masked Conformer."""
    config = dataclasses.replace(
        small.BASE,
        objective="masked",
        layout="parallel",
        condition_width=0,
        aligned=((5,),),
        positions="none",
        conv_kernel=3,
    )
    return config, small.random_params(config), small.condition_of(config)


@pytest.fixture(scope="module")
def magnet(small):
    """The same of a Transformer whose finer levels see two frames on either side."""
    config = dataclasses.replace(
        small.BASE,
        sizes=(11, 11),
        objective="masked",
        layout="parallel",
        context=2,
        prefix=((7,),),
        attribute_sizes=(),
    )
    return config, small.random_params(config), small.condition_of(config)


def frozen(model, **masking):
    return FrozenMasked.from_trained(model[0], MaskingConfig(**masking), model[1])


def generate(model, masking=None, **arguments):
    given = dict(frames=5, seeds=SEEDS, condition=model[2], sampling=SAMPLING)
    return np.asarray(frozen(model, **(masking or {})).generate(**(given | arguments)))


@pytest.mark.parametrize("span", [1, 3])
def test_a_level_is_hidden_in_part_and_the_finer_ones_whole(span):
    codes = jnp.zeros((400, 20, 4), jnp.int32)
    hidden, scored = training_masks(MaskingConfig(span=span), jax.random.key(0), codes)
    hidden, scored = np.asarray(hidden), np.asarray(scored)
    assert np.all(scored.any(axis=(1, 2))) and np.all(hidden[scored])
    level = scored.any(axis=1).argmax(axis=1)
    assert np.all(scored.any(axis=1).sum(axis=1) == 1)  # of one level
    # Levels and prompts are drawn evenly: four standard deviations of 400 draws.
    np.testing.assert_allclose(np.bincount(level) / 400, 0.25, atol=4 * np.sqrt(0.19 / 400))
    for mask, own in zip(hidden, level):
        assert not mask[:, :own].any()  # coarser levels are seen
        assert np.all(mask[:, own + 1 :] == mask[:, -1:]) or own == 3
        if own < 3:
            begin = mask[:, -1].argmax()
            assert mask[begin:, -1].all() and not mask[:begin].any()  # behind the prompt


def test_without_a_prompt_the_finer_levels_are_hidden_everywhere():
    codes = jnp.zeros((50, 20, 4), jnp.int32)
    hidden, scored = training_masks(MaskingConfig(prompt=False), jax.random.key(0), codes)
    level = np.asarray(scored).any(axis=1).argmax(axis=1)
    for mask, own in zip(np.asarray(hidden), level):
        assert mask[:, own + 1 :].all() and not mask[:, :own].any()


def test_the_loss_may_count_the_finer_levels_too():
    codes, key = jnp.zeros((50, 20, 4), jnp.int32), jax.random.key(0)
    hidden, scored = training_masks(MaskingConfig(finer=True), key, codes)
    np.testing.assert_array_equal(hidden, scored)
    np.testing.assert_array_equal(hidden, training_masks(MaskingConfig(), key, codes)[0])


def test_any_code_is_hidden_as_often_as_the_cosine_says():
    codes = jnp.zeros((3000, 6, 2), jnp.int32)
    hidden, scored = training_masks(MaskingConfig(hide="all"), jax.random.key(0), codes)
    np.testing.assert_array_equal(hidden, scored)
    # The mean of cos over a quarter turn is 2 / pi; at most one code more of twelve.
    share = np.asarray(hidden)[:, :, 1].mean()
    assert abs(share - 2 / np.pi) < 4 * np.sqrt(0.1 / 3000)


def test_masks_do_not_depend_on_the_batch():
    codes = jnp.zeros((4, 6, 2), jnp.int32)
    whole = training_masks(MaskingConfig(), jax.random.key(0), codes)
    part = training_masks(MaskingConfig(), jax.random.key(0), codes[:2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:2], b), whole, part)


@pytest.mark.parametrize("masking", [{}, dict(hide="all", steps=(4,)), dict(span=2, steps=(3, 2))])
def test_codes_are_codes_of_their_own_seed_and_condition(model, masking):
    codes = generate(model, masking)
    assert codes.shape == (3, 5, 3) and codes.min() >= 0 and codes.max() < 11
    np.testing.assert_array_equal(codes, generate(model, masking))
    rows = np.asarray([2, 0])
    part = jax.tree.map(lambda x: x[rows], model[2])
    alone = generate(model, masking, seeds=SEEDS[rows], condition=part)
    np.testing.assert_array_equal(alone, codes[rows])


def test_one_pass_a_level_takes_the_likeliest_codes_of_the_training_model(model):
    config, params, condition = model
    greedy = SamplingConfig(temperature=0.0, top_k=0, guidance=3.0)
    codes = generate(model, dict(steps=(1,), noise=0.0), sampling=greedy)
    apply = jax.jit(lambda codes, c: LM(config).apply({"params": params}, codes, c))
    seen = np.full_like(codes, 11)
    for level in range(3):
        nothing = apply(seen, absent(config, condition))
        logits = nothing + 3.0 * (apply(seen, condition) - nothing)
        seen[:, :, level] = np.asarray(logits.argmax(-1))[:, :, level]
    np.testing.assert_array_equal(codes, seen)


def test_a_scanned_model_generates_the_same(model):
    config, params, condition = model
    scanned = dataclasses.replace(config, scan=True, remat="dots"), stack_layers(params), condition
    assert "layers" in scanned[1]["conformer"]
    np.testing.assert_array_equal(generate(scanned), generate(model))


def test_finer_levels_see_a_restricted_context(magnet, small):
    """Two layers of two frames on either side; example 0 has hidden codes in level 0, 1 in level 1,
    2 has none."""
    config, params, condition = magnet
    codes = np.array(small.codes_of(config, frames=12))
    codes[0, 3, 0] = codes[0, :, 1] = codes[1, 6:, 1] = 11
    apply = jax.jit(lambda codes, c: LM(config).apply({"params": params}, codes, c))
    logits = np.asarray(apply(codes, condition))
    other = codes.copy()
    other[:, 8, 0] = (other[:, 8, 0] + 1) % 11
    changed = np.any(np.asarray(apply(other, condition)) != logits, axis=(2, 3))
    assert changed[0].all()
    near = np.abs(np.arange(12) - 8) <= 4
    np.testing.assert_array_equal(changed[1:], np.stack([near, near]))
    prefix = dataclasses.replace(condition, prefix=((condition.prefix[0] + 1) % 7,))
    assert np.any(np.asarray(apply(codes, prefix)) != logits, axis=(2, 3)).all()
    # Each example has the context of its own level.
    rows = np.asarray([1])
    alone = apply(codes[rows], jax.tree.map(lambda x: x[rows], condition))
    np.testing.assert_allclose(alone, logits[rows], atol=1e-5)


def test_guidance_goes_from_the_first_value_to_the_last(magnet):
    plain = dict(span=2, steps=(3, 2), noise=0.0)
    greedy = SamplingConfig(temperature=0.0, top_k=0, guidance=6.0)

    def made(masking, sampling=greedy):
        return generate(magnet, masking, sampling=sampling)

    constant = made(plain)
    np.testing.assert_array_equal(made(plain | dict(last_guidance=6.0)), constant)
    assert np.any(made(plain | dict(last_guidance=-6.0)) != constant)
    # The first pass has the first value, and the last one the temperature 0.
    one, hot = dict(steps=(1,), noise=0.0), dataclasses.replace(greedy, temperature=5.0)
    annealed = one | dict(last_guidance=-6.0, cooling=True)
    np.testing.assert_array_equal(made(annealed, hot), made(one))
    assert np.any(made(one, hot) != made(one))


def test_magnet_makes_the_codes_of_an_examples_own_seed(magnet):
    masking = dict(span=2, prompt=False, steps=(3, 2), last_guidance=1.0, cooling=True)
    codes, rows = generate(magnet, masking), np.asarray([2, 0])
    assert codes.min() >= 0 and codes.max() < 11
    part = jax.tree.map(lambda x: x[rows], magnet[2])
    alone = generate(magnet, masking, seeds=SEEDS[rows], condition=part)
    np.testing.assert_array_equal(alone, codes[rows])


def test_spans_stay_and_go_as_wholes(magnet):
    """A pass over 13 frames in spans of 4: what stays of the prompt's span does not count."""
    config = magnet[0]
    lm, missing = frozen(magnet, span=4), np.zeros((3, 13, 2), bool)
    missing[:, 2:, 0] = True
    codes = jnp.zeros((3, 13, 2), jnp.int32).at[:, 2:].set(11)
    numbers = SamplingConfig().numbers()
    keys = jax.vmap(jax.random.key)(SEEDS)
    for progress in (0.2, 0.5, 0.8, 1.0):
        settings = magnet[2], jnp.ones(1), numbers, (False, False)
        made = masked._pass(lm, keys, codes, missing, 0, progress, *settings)
        hidden = np.asarray(made[:, :, 0] == config.sizes[0])
        assert not hidden[:, :2].any() and (progress < 1) == bool(hidden.any())
        spans = np.split(hidden[:, 2:], [2, 6, 10], axis=1)
        assert all(np.all(span == span[:, :1]) for span in spans)
        left = np.floor(np.cos(progress * np.pi / 2) * 11)
        assert np.all((hidden.sum(axis=1) >= left) & (hidden.sum(axis=1) < left + 4))


def test_the_most_certain_codes_stay(model):
    """Two passes over one level: half of the codes of the first are those of a single pass."""
    greedy = SamplingConfig(temperature=0.0, top_k=0, guidance=1.0)
    one, two = (
        generate(model, dict(steps=(count, 1), noise=0.0), sampling=greedy)[:, :, 0]
        for count in (1, 2)
    )
    left = int(np.floor(np.cos(np.pi / 4) * 5))
    assert np.all((one == two).sum(axis=1) >= 5 - left)


def test_what_is_known_stays_and_the_rest_is_made(model):
    first = generate(model)
    prompt = generate(model, prompt=first[:, :2], seeds=SEEDS + 1)
    np.testing.assert_array_equal(prompt[:, :2], first[:, :2])
    ragged = generate(model, prompt=first[:, :3], prompt_frames=[3, 1, 2], seeds=SEEDS + 1)
    for row, (made, length) in enumerate(zip(ragged, (3, 1, 2))):
        np.testing.assert_array_equal(made[:length], first[row, :length])
    known = np.zeros(first.shape, bool)
    known[:, [0, 1, 4]] = known[:, :, 0] = True  # inpainting, and compression to one level
    made = generate(model, prompt=first, known=known, seeds=SEEDS + 1)
    np.testing.assert_array_equal(made[known], first[known])
    assert np.any(made != first) and made.max() < 11


def test_a_causal_bias_settles_early_frames_first(model):
    greedy = SamplingConfig(temperature=0.0, top_k=0, guidance=1.0)
    one, two = (
        generate(model, dict(steps=(count, 1), noise=0.0, causal_bias=1e6), sampling=greedy)
        for count in (1, 2)
    )
    left = int(np.floor(np.cos(np.pi / 4) * 5))
    np.testing.assert_array_equal(one[:, : 5 - left, 0], two[:, : 5 - left, 0])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompt=np.zeros((3, 5, 3), int)), "prompt: shape"),
        (dict(prompt=np.zeros((3, 4, 3), int), known=np.zeros((3, 5, 3), bool)), "prompt: shape"),
        (dict(prompt=np.full((3, 5, 3), 11), known=np.zeros((3, 5, 3), bool)), "prompt: a value"),
    ],
)
def test_input_that_does_not_fit_is_refused(model, change, message):
    with pytest.raises(UserError) as error:
        generate(model, **change)
    assert message in str(error.value)


def test_bad_settings_are_refused():
    for change in (dict(hide="some"), dict(span=0), dict(steps=())):
        with pytest.raises(UserError, match="masking"):
            MaskingConfig(**change)
