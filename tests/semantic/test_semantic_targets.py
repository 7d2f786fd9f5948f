"""Targets, masking and losses: laws, against plain computations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.kmeans import Codebook
from mgen.nn.conformer import ConformerConfig
from mgen.nn.spans import example_keys
from mgen.semantic import loss, masking, targets
from mgen.semantic.config import MelConfig, MelFrontConfig, SemanticConfig, TargetConfig
from mgen.semantic.frontend import log_mel

MEL = MelConfig(n_fft=128, hop=20, n_mels=8)
CONFIG = SemanticConfig(
    sample_rate=4000,
    front=MelFrontConfig(mel=MEL, stack=4),
    trunk=ConformerConfig(dim=8, heads=1, layers=1, ff=8),
)
RANDOM = TargetConfig(
    kind="random_projection", codebooks=3, codebook_size=20, codebook_dim=4, mel=MEL
)
RVQ = TargetConfig(kind="mel_rvq", codebooks=3, codebook_size=16, mel=MEL)


def audio(batch=2, samples=2000, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, samples, 1)).astype(np.float32)


def variables_of(wanted):
    variables = targets.init_variables(CONFIG, wanted)
    if wanted.kind == "mel_rvq":
        shape = variables["codebook"].shape
        variables = {"codebook": jax.random.normal(jax.random.key(1), shape)}
    return variables


@pytest.mark.parametrize("wanted", [RANDOM, RVQ], ids=lambda wanted: wanted.kind)
def test_codes_are_those_of_the_example_alone(wanted):
    variables, x = variables_of(wanted), audio(3)
    together = targets.codes(CONFIG, wanted, variables, {"audio": x})
    assert together.shape == (3, 25, 3) and together.dtype == jnp.int32
    assert together.min() >= 0 and together.max() < wanted.codebook_size
    for i in range(3):
        alone = targets.codes(CONFIG, wanted, variables, {"audio": x[i : i + 1]})
        np.testing.assert_array_equal(together[i : i + 1], alone)
    again = variables_of(wanted)
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_random_projection_is_the_nearest_unit_vector():
    variables = variables_of(RANDOM)
    x = audio()
    codes = targets.codes(CONFIG, RANDOM, variables, {"audio": x})
    mel = np.asarray(log_mel(MEL, 4000, x[..., 0]))
    assert mel.shape == (2, 100, 8)
    mel = (mel - mel.mean(1, keepdims=True)) / np.maximum(mel.std(1, keepdims=True), 0.1)
    for k in range(3):
        projected = mel.reshape(2, 25, 32) @ np.asarray(variables["projection"][k])
        projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
        table = np.asarray(variables["codebook"][k])
        np.testing.assert_allclose(np.linalg.norm(table, axis=-1), 1, rtol=1e-5)
        distance = np.square(projected[..., None, :] - table).sum(-1)
        np.testing.assert_array_equal(codes[..., k], distance.argmin(-1))
    seeds = [targets.init_variables(CONFIG, dataclasses.replace(RANDOM, seed=s)) for s in (0, 1)]
    assert not np.allclose(seeds[0]["projection"], seeds[1]["projection"])


def test_random_projection_ignores_loudness():
    """Each bin is normalised over the example."""
    variables, x = variables_of(RANDOM), audio()
    loud, quiet = (
        targets.codes(CONFIG, RANDOM, variables, {"audio": x * gain}) for gain in (1.0, 0.2)
    )
    np.testing.assert_array_equal(loud, quiet)


def test_residual_codes_equal_the_codebooks_own(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 16, 32)).astype(np.float32)
    book = Codebook(vectors)
    book.save(tmp_path / "book")
    wanted = dataclasses.replace(RVQ, codebook=str(tmp_path / "book"))
    np.testing.assert_array_equal(targets.load_codebook(CONFIG, wanted), vectors)
    x = audio()
    ours = targets.codes(CONFIG, wanted, {"codebook": jnp.asarray(vectors)}, {"audio": x})
    patches = np.asarray(targets.mel_patches(CONFIG, wanted, x))
    np.testing.assert_array_equal(ours.reshape(-1, 3), book.encode(patches.reshape(-1, 32)))
    other = dataclasses.replace(wanted, codebook_size=8)
    with pytest.raises(UserError, match=r"shape \(3, 16, 32\), expected \(3, 8, 32\)"):
        targets.load_codebook(CONFIG, other)
    with pytest.raises(UserError, match=r"targets.codebook is empty"):
        targets.load_codebook(CONFIG, RVQ)


def test_codec_frames_are_stacked():
    wanted = TargetConfig(kind="codes", codebooks=6, codebook_size=100)
    codes = np.arange(2 * 9 * 3).reshape(2, 9, 3).astype(np.int32)
    ours = targets.codes(CONFIG, wanted, {}, {"codes": codes})
    assert ours.shape == (2, 4, 6)
    np.testing.assert_array_equal(ours[1, 2], codes[1, 4:6].ravel())


def test_cqt_is_centred_on_the_frames():
    wanted = dataclasses.replace(RANDOM, cqt_bins=12, cqt_fmin=500.0)
    time = np.arange(4000) / 4000
    tone = np.sin(2 * np.pi * 500.0 * 2 ** (7 / 12) * time) * (time >= 0.5)
    x = tone[None, :, None].astype(np.float32)
    spectrum = targets.cqt(CONFIG, wanted, x)
    assert spectrum.shape == (1, 50, 12)
    assert (np.asarray(spectrum[0, 30:45]).argmax(-1) == 7).all()
    # The tone enters between frames 24 (centred on 0.49 s) and 25 (on 0.51 s).
    level = np.asarray(spectrum[0, :, 7]) / np.asarray(spectrum[0, 35, 7])
    assert level[24] < 0.5 < level[25] and abs(level[24] + level[25] - 1) < 0.1
    logs = targets.cqt(CONFIG, dataclasses.replace(wanted, cqt_gain=3.0), x)
    np.testing.assert_allclose(logs, np.log1p(3.0 * spectrum), rtol=1e-5)


def test_frames_that_cannot_be_aligned_are_refused():
    targets.check(CONFIG, RANDOM)
    with pytest.raises(UserError, match=r"targets.mel.hop is 30, expected a divisor"):
        targets.check(CONFIG, dataclasses.replace(RANDOM, mel=dataclasses.replace(MEL, hop=30)))
    with pytest.raises(UserError, match=r"targets.kind is 'best'"):
        TargetConfig.from_config(dict(kind="best", codebooks=1, codebook_size=2))


@settings(deadline=None, max_examples=25)
@given(st.floats(0.02, 0.95), st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_masked_share(probability, length, seed):
    """Each frame is hidden with the given probability, the first and the last ones too."""
    count, frames = 3000, 15
    keys = example_keys(jax.random.key(seed), count)
    mask = np.asarray(masking.span_mask(keys, frames, probability, length))
    assert mask.shape == (count, frames)
    # Five standard deviations, for each frame.
    bound = 5 * np.sqrt(probability * (1 - probability) / count)
    np.testing.assert_allclose(mask.mean(axis=0), probability, atol=bound)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 0.6), st.integers(2, 9), st.integers(0, 2**31 - 1))
def test_spans_have_their_length(probability, length, seed):
    keys = example_keys(jax.random.key(seed), 4)
    for row in np.asarray(masking.span_mask(keys, 100, probability, length)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        for start, stop in edges.reshape(-1, 2):
            assert stop - start >= length or start == 0 or stop == 100


def test_an_examples_mask_is_its_own():
    keys = example_keys(jax.random.key(0), 8)
    mask = masking.span_mask(keys, 50, 0.4, 5)
    np.testing.assert_array_equal(
        mask[:3], masking.span_mask(example_keys(jax.random.key(0), 3), 50, 0.4, 5)
    )
    assert len(np.unique(np.asarray(mask), axis=0)) == 8


def test_noise_fills_the_hidden_frames_only():
    keys = example_keys(jax.random.key(0), 2)
    x = np.full((2, 1003, 8), 7.0, np.float32)
    mask = np.zeros((2, 250), bool)
    mask[0, 10:60] = mask[1, 249] = True
    filled = np.asarray(masking.fill_noise(keys, x, mask, 4))
    hidden = np.repeat(mask, 4, axis=1)
    np.testing.assert_array_equal(filled[:, :1000][~hidden], 7.0)
    np.testing.assert_array_equal(filled[:, 1000:], 7.0)
    noise = filled[0, 40:240]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 0.1) < 0.01


def test_noise_mixture():
    x = audio(64, 800)
    keys = example_keys(jax.random.key(0), 64)
    never, always, half = (
        np.asarray(masking.mix_noise(keys, x, p, (3.0, 3.0))) for p in (0.0, 1.0, 0.5)
    )
    np.testing.assert_array_equal(never, x)
    touched = np.any(half != x, axis=(1, 2))
    assert 0.25 < touched.mean() < 0.75
    for before, after in zip(x, always):
        where = np.flatnonzero(before != after)
        assert 0 < where[-1] - where[0] + 1 <= 400
        added = (after - before)[where[0] : where[-1] + 1]
        if len(added) > 200:
            ratio = 20 * np.log10(before.std() / added.std())
            assert abs(ratio - 3.0) < 1.0
    # What is added is the neighbour's: noise over the constant ones.
    constant = x.copy()
    constant[1::2] = 1.0
    added = np.asarray(masking.mix_noise(keys, constant, 1.0, (3.0, 3.0))) - constant
    for segment in added[1::2]:
        assert segment[segment != 0].std() > 0.3 or np.count_nonzero(segment) < 9
    one = masking.mix_noise(keys[:1], x[:1], 1.0, (3.0, 3.0))
    np.testing.assert_array_equal(one, x[:1])


def test_cross_entropy_is_over_masked_frames():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 6, 3, 5)).astype(np.float32)
    codes = rng.integers(0, 5, (2, 6, 3))
    mask = rng.random((2, 6)) < 0.5
    nats, hits = loss.cross_entropy(logits, jnp.asarray(codes), jnp.asarray(mask))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = -np.take_along_axis(logs, codes[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, chosen[mask].mean(0), rtol=1e-5)
    np.testing.assert_allclose(hits, (logits.argmax(-1) == codes)[mask].mean(0), rtol=1e-5)
    changed = np.where(mask[..., None, None], logits, 9 * logits)
    np.testing.assert_allclose(
        nats, loss.cross_entropy(changed, jnp.asarray(codes), jnp.asarray(mask))[0], rtol=1e-6
    )
    nothing = loss.cross_entropy(logits, jnp.asarray(codes), jnp.zeros((2, 6), bool))
    np.testing.assert_array_equal(nothing, np.zeros((2, 3)))


def test_regression_against_the_mean():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 2, 6, 4)).astype(np.float32)
    mask = rng.random((2, 6)) < 0.5
    error, spread = loss.regression(prediction, target, jnp.asarray(mask))
    np.testing.assert_allclose(error, np.square(prediction - target)[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(spread, target[mask].var(axis=0).mean(), rtol=1e-5)


def test_perplexity():
    codes = np.zeros((1, 8, 2), np.int32)
    codes[0, :, 1] = np.arange(8) % 4
    np.testing.assert_allclose(loss.perplexity(jnp.asarray(codes), 6), [1.0, 4.0], rtol=1e-5)
