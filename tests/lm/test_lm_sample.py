"""Generation: reproducible, independent of batch mates, continues prompts; laws of the filters."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.lm import sample
from mgen.lm.decode import Condition
from mgen.lm.model import LM, LMConfig
from mgen.lm.sample import FrozenLM, SamplingConfig, generate

CONFIG = LMConfig(
    num_codebooks=3,
    codebook_size=19,
    dim=16,
    heads=2,
    layers=2,
    ff=32,
    condition_width=6,
    attribute_sizes=(3, 5),
)
FRAMES = 8
SEEDS = np.asarray([5, 6, 7])
ATTRIBUTES = np.asarray([[1, 2], [0, 4], [2, 0]])
CONDITION = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
MASK = np.asarray([[True] * 4, [True, True, False, False], [True, False, False, False]])
CONDITIONED = dict(attributes=ATTRIBUTES, condition=CONDITION, condition_mask=MASK)
PLAIN = SamplingConfig(top_k=0, guidance=1.0)


def trained(config):
    tokens = jnp.zeros((1, 1, config.num_codebooks), jnp.int32)
    vectors = jnp.zeros((1, 1, 6)) if config.condition_width else None
    params = LM(config).init(jax.random.key(0), tokens, condition=vectors)["params"]
    # Sharper than at the start, so that conditions and history count.
    return jax.tree.map(lambda p: p * 2.0, params)


@pytest.fixture(scope="module")
def model():
    return FrozenLM.from_trained(CONFIG, trained(CONFIG))


@pytest.fixture(scope="module")
def codes(model):
    return np.asarray(model.generate(frames=FRAMES, seeds=SEEDS, **CONDITIONED))


def test_codes_are_codes_and_seeds_matter(model, codes):
    assert codes.shape == (3, FRAMES, 3)
    assert codes.min() >= 0 and codes.max() < 19
    again = model.generate(frames=FRAMES, seeds=SEEDS, **CONDITIONED)
    np.testing.assert_array_equal(codes, again)
    other = model.generate(frames=FRAMES, seeds=SEEDS + 1, **CONDITIONED)
    assert np.all(np.any(codes != other, axis=(1, 2)))


def test_every_step_and_stream_has_noise_of_its_own():
    config = dataclasses.replace(CONFIG, condition_width=0, layout="parallel")
    silent = jax.tree.map(jnp.zeros_like, trained(config))
    codes = np.asarray(generate(config, silent, frames=12, seeds=SEEDS, sampling=PLAIN))
    streams = codes.transpose(0, 2, 1).reshape(9, 12)
    assert len({stream.tobytes() for stream in streams}) == 9
    # 12 draws of 19 codes: fewer than 5 distinct ones have a probability under 1e-4.
    assert min(len(set(stream.tolist())) for stream in streams) >= 5


def test_no_step_copies_the_cache_or_a_weight(model):
    condition = Condition(*map(jnp.asarray, (ATTRIBUTES, CONDITION, MASK)))
    settings_ = {"temperature": jnp.float32(1), "guidance": jnp.float32(3)}
    text = sample._generate.lower(
        model,
        jnp.asarray(SEEDS),
        jnp.zeros((3, 0, 3), jnp.int32),
        condition,
        settings_,
        frames=FRAMES,
        filters=(False, False),
        guided=True,
    )
    text = text.compile().as_text()
    steps = CONFIG.make_layout().steps(FRAMES)
    shapes = [(6, 2, steps, 8), *(w.shape for w in jax.tree.leaves(model.weights) if w.ndim == 2)]
    names = {"f32[" + ",".join(map(str, shape)) + "]" for shape in shapes if shape[-1] > 1}
    assert all(name in text for name in names)
    body = [part for part in text.split("\n\n") if "dynamic-update-slice" in part or "dot(" in part]
    copies = re.findall(r"= (\S+?\])\{\S* copy\(", "\n".join(body))
    assert not names & set(copies)


def test_an_example_does_not_depend_on_its_batch(model, codes):
    for rows in ([1], [2, 0], [2, 1, 0]):
        part = {name: value[rows] for name, value in CONDITIONED.items()}
        alone = model.generate(frames=FRAMES, seeds=SEEDS[rows], **part)
        np.testing.assert_array_equal(alone, codes[rows])


def test_equal_examples_with_other_seeds_differ(model):
    same = {name: value[[0, 0, 0]] for name, value in CONDITIONED.items()}
    codes = model.generate(frames=FRAMES, seeds=SEEDS, **same)
    assert len({c.tobytes() for c in np.asarray(codes)}) == 3


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_a_prompt_is_kept_and_continued_as_if_generated(model, codes, frames):
    prompt = codes[:, :frames]
    again = model.generate(frames=FRAMES, seeds=SEEDS, prompt=prompt, **CONDITIONED)
    np.testing.assert_array_equal(again, codes)
    foreign = (prompt + 1) % 19
    continued = model.generate(frames=FRAMES, seeds=SEEDS, prompt=foreign, **CONDITIONED)
    np.testing.assert_array_equal(continued[:, :frames], foreign)


@pytest.mark.parametrize("layout", ["flatten", "parallel", "partial_flatten", "coarse_first"])
def test_every_layout_generates_and_continues(layout):
    config = dataclasses.replace(CONFIG, layout=layout, condition_width=0)
    frozen = FrozenLM.from_trained(config, trained(config))
    first = np.asarray(frozen.generate(frames=4, seeds=SEEDS, sampling=PLAIN))
    again = frozen.generate(frames=4, seeds=SEEDS, prompt=first[:, :2], sampling=PLAIN)
    np.testing.assert_array_equal(first, again)


def test_segments_change_nothing(monkeypatch):
    # Another config, so that the two programs are not taken from one another's cache.
    config = dataclasses.replace(CONFIG, layers=1, condition_width=0)
    params = trained(config)
    arguments = dict(frames=FRAMES, seeds=SEEDS, attributes=ATTRIBUTES)
    whole = generate(config, params, **arguments)
    monkeypatch.setattr(sample, "SEGMENT", 4)
    sample._generate.clear_cache()
    for prompt in (None, np.asarray(whole)[:, :6]):
        np.testing.assert_array_equal(generate(config, params, prompt=prompt, **arguments), whole)


def teacher_forced(codes, guidance):
    """Logits [B, L, K, V] along a generated sequence, by the training model."""
    layout, params = CONFIG.make_layout(), trained(CONFIG)
    sequence = layout.encode(jnp.asarray(codes))
    inputs = layout.shift(sequence)

    def logits(attributes, mask):
        return LM(CONFIG).apply({"params": params}, inputs, attributes, CONDITION, mask)

    conditional = logits(ATTRIBUTES, MASK)
    unconditional = logits(np.zeros_like(ATTRIBUTES), np.zeros_like(MASK))
    guided = unconditional + guidance * (conditional - unconditional)
    return guided, sequence, np.broadcast_to(layout.mask(FRAMES), sequence.shape)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_takes_the_largest_guided_logit(model, guidance):
    sampling = SamplingConfig(temperature=0.0, guidance=guidance)
    codes = model.generate(frames=FRAMES, seeds=SEEDS, sampling=sampling, **CONDITIONED)
    logits, sequence, mask = teacher_forced(codes, guidance)
    np.testing.assert_array_equal(logits.argmax(-1)[mask], np.asarray(sequence)[mask])


def test_guidance_of_one_is_the_conditional_model_and_none_the_unconditional(model):
    def run(guidance):
        sampling = SamplingConfig(guidance=guidance, top_k=0)
        return model.generate(frames=FRAMES, seeds=SEEDS, sampling=sampling, **CONDITIONED)

    # 1 takes the program without the second half of the batch, 1 + 1e-6 the one with it.
    np.testing.assert_array_equal(run(1.0), run(1.0 + 1e-6))
    unconditional = model.generate(frames=FRAMES, seeds=SEEDS, sampling=PLAIN)
    np.testing.assert_array_equal(run(0.0), unconditional)
    assert np.any(np.asarray(run(1.0)) != np.asarray(unconditional))


def test_numbers_recompile_nothing(model):
    def run(**values):
        model.generate(frames=FRAMES, seeds=SEEDS, sampling=SamplingConfig(**values), **CONDITIONED)

    run()
    before = sample._generate._cache_size()
    run(temperature=0.5, top_k=3, guidance=2.0)
    assert sample._generate._cache_size() == before


def test_samples_follow_the_softmax():
    probabilities = np.asarray([0.5, 0.3, 0.15, 0.05])
    n = 4000
    keys = jax.random.split(jax.random.key(0), n)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities)), (n, 1, 4))
    for temperature in (1.0, 0.5):
        settings_ = {"temperature": jnp.float32(temperature)}
        drawn = np.asarray(sample.sample_tokens(keys, logits, settings_, (False, False)))
        expected = probabilities ** (1 / temperature)
        expected = expected / expected.sum()
        # Four standard deviations of a frequency over n draws.
        tolerance = 4 * np.sqrt(0.25 / n)
        np.testing.assert_allclose(np.bincount(drawn.ravel()) / n, expected, atol=tolerance)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.floats(0.1, 20.0))
def test_top_k_keeps_the_k_largest(seed, k, scale):
    logits = np.random.default_rng(seed).normal(size=(3, 30)).astype(np.float32) * scale
    kept = np.isfinite(sample.top_k_filter(jnp.asarray(logits), jnp.float32(k)))
    rank = (-logits).argsort(-1).argsort(-1)
    np.testing.assert_array_equal(kept, rank < k)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31 - 1), st.floats(0.01, 1.0), st.floats(0.1, 20.0), st.floats(0.3, 3.0))
def test_top_p_keeps_the_smallest_likely_set(seed, p, scale, temperature):
    logits = np.random.default_rng(seed).normal(size=(3, 30)).astype(np.float32) * scale
    filtered = sample.top_p_filter(jnp.asarray(logits), jnp.float32(p), jnp.float32(temperature))
    kept = np.isfinite(filtered)
    scaled = logits.astype(np.float64) / temperature
    mass = np.exp(scaled - scaled.max(-1, keepdims=True))
    mass /= mass.sum(-1, keepdims=True)
    for row, keep in zip(mass, kept):
        assert keep[row.argmax()]
        assert row[keep].min() >= row[~keep].max(initial=0)
        # Enough, and not without the least of them; float32 sums of 30 terms.
        assert row[keep].sum() >= p - 1e-5
        assert keep.sum() == 1 or row[keep].sum() - row[keep].min() < p + 1e-5


def test_ties_and_infinities():
    logits = jnp.asarray([[1.0, 1.0, 0.0, -1.0], [-jnp.inf, 2.0, -jnp.inf, -jnp.inf]])
    kept = np.isfinite(sample.top_k_filter(logits, jnp.float32(1)))
    np.testing.assert_array_equal(kept, [[True, True, False, False], [False, True, False, False]])
    kept = np.isfinite(sample.top_p_filter(logits, jnp.float32(0.9), jnp.float32(1.0)))
    np.testing.assert_array_equal(kept[1], [False, True, False, False])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompt=np.zeros((3, 8, 3), int)), "prompt: shape"),
        (dict(prompt=np.full((3, 2, 3), 19)), "prompt: a code lies outside 0 .. 18"),
        (dict(attributes=np.asarray([[3, 0]] * 3)), "attributes: a value lies outside"),
        (dict(attributes=np.zeros((2, 2), int)), "attributes: shape is (2, 2)"),
        (dict(condition=np.zeros((3, 4, 5))), "condition: shape is (3, 4, 5)"),
    ],
)
def test_input_that_does_not_fit_is_refused(model, change, message):
    with pytest.raises(UserError) as error:
        model.generate(frames=FRAMES, seeds=SEEDS, **(CONDITIONED | change))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "field, value", [("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("guidance", np.nan)]
)
def test_sampling_out_of_range_is_refused(field, value):
    with pytest.raises(UserError, match=f"sampling.{field}"):
        SamplingConfig(**{field: value})
