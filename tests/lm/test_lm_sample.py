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
from mgen.lm import decode, filters, sample
from mgen.lm.condition import Condition, absent
from mgen.lm.filters import SamplingConfig
from mgen.lm.model import LM
from mgen.lm.sample import FrozenLM

FRAMES = 5
SEEDS = np.asarray([5, 6, 7])
GUIDED = SamplingConfig(top_k=7, guidance=2.0)
PLAIN = SamplingConfig(top_k=0, guidance=1.0)


@pytest.fixture(scope="module")
def model(case):
    return FrozenLM.from_trained(*case)


@pytest.fixture(scope="module")
def condition(case, small):
    return small.condition_of(case[0])


@pytest.fixture(scope="module")
def run(model, condition):
    def generate(**arguments):
        given = dict(frames=FRAMES, seeds=SEEDS, condition=condition, sampling=GUIDED)
        return np.asarray(model.generate(**(given | arguments)))

    return generate


@pytest.fixture(scope="module")
def codes(run):
    return run()


@pytest.fixture(scope="module")
def plain(small):
    """A model without conditions, and its parameters."""
    config = dataclasses.replace(small.BASE, condition_width=0, attribute_sizes=())
    return config, small.random_params(config)


def test_codes_are_codes_and_seeds_matter(case, run, codes):
    assert codes.shape == (3, FRAMES, 3)
    assert codes.min() >= 0 and np.all(codes < np.asarray(case[0].sizes))
    np.testing.assert_array_equal(codes, run())
    # Guidance leaves some of these small models little choice.
    drawn = run(sampling=PLAIN)
    assert np.all(np.any(drawn != run(sampling=PLAIN, seeds=SEEDS + 1), axis=(1, 2)))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_takes_the_largest_logit_of_the_training_model(case, condition, run, guidance):
    """The cached steps against the whole sequence, for every kind of model."""
    config, params = case
    codes = run(sampling=SamplingConfig(temperature=0.0, top_k=0, guidance=guidance))
    apply = jax.jit(lambda c: LM(config).apply({"params": params}, jnp.asarray(codes), c))
    nothing = apply(absent(config, condition))
    logits = nothing + guidance * (apply(condition) - nothing)
    np.testing.assert_array_equal(logits.argmax(-1), codes)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_prompt_is_kept_and_continued_as_if_generated(case, run, codes, frames):
    np.testing.assert_array_equal(run(prompt=codes[:, :frames]), codes)
    foreign = (codes[:, :frames] + 1) % np.asarray(case[0].sizes)
    continued = run(prompt=foreign)
    np.testing.assert_array_equal(continued[:, :frames], foreign)


def test_ragged_prompts_are_continued_as_if_alone(condition, run, codes, model):
    lengths = np.asarray([3, 1, 2])
    ragged = run(prompt=codes[:, :3], prompt_frames=lengths)
    for b, length in enumerate(lengths):
        own = jax.tree.map(lambda x, b=b: x[b : b + 1], condition)
        # Rows beside the frames begin where the example begins.
        own = dataclasses.replace(own, aligned=tuple(x[:, : length + 2] for x in own.aligned))
        alone = model.generate(
            frames=int(length) + 2,
            seeds=SEEDS[b : b + 1],
            condition=own,
            prompt=codes[b : b + 1, :length],
            sampling=GUIDED,
        )
        np.testing.assert_array_equal(ragged[b, : length + 2], alone[0])
        assert not ragged[b, length + 2 :].any()


def test_an_example_does_not_depend_on_its_batch(condition, run, codes):
    for rows in (np.asarray([1]), np.asarray([2, 0])):
        part = jax.tree.map(lambda x, rows=rows: x[rows], condition)
        np.testing.assert_array_equal(run(seeds=SEEDS[rows], condition=part), codes[rows])


def test_chunks_are_what_comes_in_the_end(model, condition, codes):
    given = dict(frames=FRAMES, seeds=SEEDS, condition=condition, sampling=GUIDED)
    chunks = [np.asarray(chunk) for chunk in model.stream(chunk=2, **given)]
    assert len(chunks) > 1
    for chunk in chunks:
        np.testing.assert_array_equal(chunk, codes[:, : chunk.shape[1]])
    assert chunks[-1].shape == codes.shape


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 6))
def test_int8_is_off_by_half_a_step_at_most(seed, level):
    w = np.random.default_rng(seed).standard_normal((5, 9), np.float32) * np.float32(10**level)
    w[2] = 0.0
    made = decode.quantized({"layers": [{"ff_in": {"w": jnp.asarray(w)}}], "embed": w})
    matrix = made["layers"][0]["ff_in"]
    assert matrix["w"].dtype == jnp.int8 and made["embed"] is w
    error = np.abs(np.asarray(matrix["w"]) * np.asarray(matrix["scale"]) - w)
    assert np.all(error <= 0.5001 * np.abs(w).max(axis=1, keepdims=True) / 127)


def values(node):
    """Weights with what int8 matrices stand for in their place."""
    if isinstance(node, list):
        return [values(item) for item in node]
    if not isinstance(node, dict) or "w" not in node:
        return {k: values(v) for k, v in node.items()} if isinstance(node, dict) else node
    return {k: v for k, v in node.items() if k != "scale"} | {"w": node["w"] * node["scale"]}


@settings(max_examples=20, deadline=None)
@given(outputs=st.integers(1, 40), inputs=st.integers(1, 9), columns=st.integers(1, 3))
def test_int8_products_by_blocks_are_those_of_the_whole(outputs, inputs, columns):
    rng = np.random.default_rng(outputs)
    w = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    x = rng.integers(-9, 10, (inputs, columns)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "BLOCK", 30)
        y = decode.linear({"w": jnp.asarray(w), "scale": jnp.ones((outputs, 1))}, jnp.asarray(x))
    # Whole numbers: exact.
    np.testing.assert_array_equal(y, w.astype(np.float32) @ x)


def test_int8_weights_give_the_logits_of_their_values(case, condition, model):
    """Each product by int8 weights is that by the values that they stand for."""
    whole = model.int8()
    assert jax.tree.structure(whole.weights) != jax.tree.structure(model.weights)
    same = dataclasses.replace(whole, weights=values(whole.weights))
    given = dict(frames=FRAMES, seeds=SEEDS, condition=condition, sampling=GUIDED)
    np.testing.assert_array_equal(whole.generate(**given), same.generate(**given))


def test_a_loss_with_int8_values_is_that_of_int8_weights(case, model):
    config, params = case
    rounded = FrozenLM.from_trained(config, decode.int8_values(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=0),
        rounded.weights, values(model.int8().weights),
    )  # fmt: skip


def test_variants_are_guidance_by_several_conditions(case, condition, run, codes):
    config, _ = case
    nothing = absent(config, condition)
    if jax.tree.leaves(condition):
        pair = [(GUIDED.guidance, condition), (1.0 - GUIDED.guidance, nothing)]
        np.testing.assert_array_equal(run(variants=pair), codes)
    # One condition split in two halves is that condition.
    halves = [(0.5, condition), (0.5, condition)]
    np.testing.assert_array_equal(
        run(variants=halves), run(sampling=dataclasses.replace(PLAIN, top_k=7))
    )


@pytest.mark.parametrize("layout", ["partial_flatten", "coarse_first"])
def test_every_other_layout_generates_and_continues(small, plain, layout):
    config = dataclasses.replace(plain[0], layout=layout)
    frozen = FrozenLM.from_trained(config, plain[1])
    first = np.asarray(frozen.generate(frames=4, seeds=SEEDS, sampling=PLAIN))
    again = frozen.generate(frames=4, seeds=SEEDS, prompt=first[:, :2], sampling=PLAIN)
    np.testing.assert_array_equal(first, again)


def test_every_step_and_stream_has_noise_of_its_own(plain):
    config = dataclasses.replace(plain[0], layout="parallel")
    silent = FrozenLM.from_trained(config, jax.tree.map(jnp.zeros_like, plain[1]))
    codes = np.asarray(silent.generate(frames=12, seeds=SEEDS, sampling=PLAIN))
    streams = codes.transpose(0, 2, 1).reshape(9, 12)
    assert len({stream.tobytes() for stream in streams}) == 9
    # 12 draws of 11 codes: fewer than 4 distinct ones have a probability under 1e-4.
    assert min(len(set(stream.tolist())) for stream in streams) >= 4


def test_segments_change_nothing(plain, monkeypatch):
    frozen = FrozenLM.from_trained(*plain)
    arguments = dict(frames=8, seeds=SEEDS, sampling=PLAIN)
    whole = np.asarray(frozen.generate(**arguments))
    monkeypatch.setattr(sample, "SEGMENT", 4)
    for prompt in (None, whole[:, :6]):
        np.testing.assert_array_equal(frozen.generate(prompt=prompt, **arguments), whole)


def test_no_step_copies_the_cache_or_a_weight(small):
    config = small.BASE
    frozen = FrozenLM.from_trained(config, small.random_params(config))
    arguments = dict(condition=small.condition_of(config), sampling=SamplingConfig(top_k=0))
    inputs, plan = sample._prepare(config, FRAMES, SEEDS, **arguments)
    state = sample._start(frozen, inputs, plan)
    lowered = sample._advance.lower(frozen, inputs, state, jnp.int32(plan.steps), *plan.shape)
    text = lowered.compile().as_text()
    shapes = [(6, 4, plan.steps, 4)]
    shapes += [w.shape for w in jax.tree.leaves(frozen.weights["transformer"]) if w.ndim == 2]
    names = {"f32[" + ",".join(map(str, shape)) + "]" for shape in shapes if shape[-1] > 1}
    body = [part for part in text.split("\n\n") if "dynamic-update-slice" in part or "dot(" in part]
    assert names & set(re.findall(r"f32\[[\d,]+\]", "\n".join(body)))
    copies = re.findall(r"= (\S+?\])\{\S* copy\(", "\n".join(body))
    assert not names & set(copies)


def test_numbers_and_prompts_recompile_nothing(plain):
    frozen = FrozenLM.from_trained(*plain)

    def run(prompt, **values):
        sampling = SamplingConfig(**values)
        frozen.generate(frames=6, seeds=SEEDS, sampling=sampling, prompt=prompt)

    run(None)
    before = sample._advance._cache_size()
    run(np.zeros((3, 2, 3), int), temperature=0.5, top_k=3)
    assert sample._advance._cache_size() == before


def test_samples_follow_the_softmax():
    probabilities = np.asarray([0.5, 0.3, 0.15, 0.05])
    n = 4000
    keys = jax.random.split(jax.random.key(0), n)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities)), (n, 1, 4))
    for temperature in (1.0, 0.5):
        settings_ = {"temperature": jnp.float32(temperature)}
        drawn = np.asarray(filters.sample_tokens(keys, logits, settings_, (False, False)))
        expected = probabilities ** (1 / temperature)
        expected = expected / expected.sum()
        # Four standard deviations of a frequency over n draws.
        tolerance = 4 * np.sqrt(0.25 / n)
        np.testing.assert_allclose(np.bincount(drawn.ravel()) / n, expected, atol=tolerance)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.floats(0.1, 20.0))
def test_top_k_keeps_the_k_largest(seed, k, scale):
    logits = np.random.default_rng(seed).normal(size=(3, 30)).astype(np.float32) * scale
    kept = np.isfinite(filters.top_k_filter(jnp.asarray(logits), jnp.float32(k)))
    rank = (-logits).argsort(-1).argsort(-1)
    np.testing.assert_array_equal(kept, rank < k)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31 - 1), st.floats(0.01, 1.0), st.floats(0.1, 20.0), st.floats(0.3, 3.0))
def test_top_p_keeps_the_smallest_likely_set(seed, p, scale, temperature):
    logits = np.random.default_rng(seed).normal(size=(3, 30)).astype(np.float32) * scale
    filtered = filters.top_p_filter(jnp.asarray(logits), jnp.float32(p), jnp.float32(temperature))
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
    kept = np.isfinite(filters.top_k_filter(logits, jnp.float32(1)))
    np.testing.assert_array_equal(kept, [[True, True, False, False], [False, True, False, False]])
    kept = np.isfinite(filters.top_p_filter(logits, jnp.float32(0.9), jnp.float32(1.0)))
    np.testing.assert_array_equal(kept[1], [False, True, False, False])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompt=np.zeros((3, 5, 3), int)), "prompt: shape"),
        (dict(prompt=np.full((3, 2, 3), 11)), "prompt: a value lies outside"),
        (dict(prompt=np.zeros((3, 2, 3), int), prompt_frames=[1, 2, 3]), "prompt_frames: expected"),
        (dict(condition=Condition(vectors=np.zeros((3, 4, 5)))), "condition: shape is (3, 4, 5)"),
    ],
)
def test_input_that_does_not_fit_is_refused(plain, change, message):
    with pytest.raises(UserError) as error:
        FrozenLM(plain[0], {}).generate(frames=FRAMES, seeds=SEEDS, **change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "field, value", [("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("guidance", np.nan)]
)
def test_sampling_out_of_range_is_refused(field, value):
    with pytest.raises(UserError, match=f"sampling.{field}"):
        SamplingConfig(**{field: value})
