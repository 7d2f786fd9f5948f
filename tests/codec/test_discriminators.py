"""Discriminators: published sizes, the layouts they look at, and what they can see."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from mgen import tree
from mgen.codec import discriminators as d

RATE = 16000
TINY = d.DiscriminatorConfig(
    stft_windows=(128,),
    stft_filters=4,
    periods=(2, 3),
    period_filters=(4, 8, 8),
    band_windows=(128,),
    band_filters=4,
    wave_scales=2,
    wave_filters=4,
    wave_max_filters=16,
    normalize=True,
)


def noise(seed: int, *shape: int) -> jax.Array:
    return 0.1 * jax.random.normal(jax.random.key(seed), shape)


def shapes_of(config: d.DiscriminatorConfig, samples: int, channels: int):
    model = d.Discriminator(config)
    audio = jax.ShapeDtypeStruct((2, samples, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), audio)
    return variables["params"], jax.eval_shape(model.apply, variables, audio)


def encodec_size(filters: int, channels: int) -> int:
    """Kernels, biases and (but for the first layer) gains of one scale, counted by hand."""
    first = 27 * 2 * channels * filters + filters
    dilated = 3 * (27 * filters**2 + 2 * filters)
    last = 9 * filters**2 + 2 * filters
    return first + dilated + last + 9 * filters + 2


def period_size(channels: int) -> int:
    widths = (channels, 32, 128, 512, 1024, 1024)
    layers = [5 * i * o + 2 * o for i, o in itertools.pairwise(widths)]
    return sum(layers) + 3 * 1024 + 2


def band_size(channels: int) -> int:
    stack = 27 * 2 * channels * 32 + 64 + 3 * (27 * 32**2 + 64) + 9 * 32**2 + 64
    return 5 * stack + 9 * 32 + 2


def wave_size(channels: int) -> int:
    grouped = [(16, 64), (64, 256), (256, 1024), (1024, 1024)]
    layers = [15 * channels * 16 + 32]
    layers += [41 * 4 * outputs + 2 * outputs for _, outputs in grouped]
    return sum(layers) + 5 * 1024**2 + 2048 + 3 * 1024 + 2


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("encodec", lambda c: 5 * encodec_size(32, c)),
        ("encodec_32khz", lambda c: 5 * encodec_size(32, c)),
        ("oobleck", lambda c: 5 * encodec_size(64, c)),
        ("dac", lambda c: 5 * period_size(c) + 3 * band_size(c)),
        ("soundstream", lambda c: encodec_size(32, c) + 3 * wave_size(c)),
    ],
)
def test_full_sizes(name, size, channels):
    config = d.DiscriminatorConfig.from_config(d.recipe(name))
    params, verdicts = shapes_of(config, 24000, channels)
    assert tree.size(params) == size(channels)
    assert len(verdicts) == config.count


def test_shape_laws():
    """Frames and strides of every kind, at full size, on one second."""
    config = d.DiscriminatorConfig(
        stft_windows=(1024,), periods=(7,), band_windows=(512,), wave_scales=2
    )
    _, (stft, period, band, wave, wave_half) = shapes_of(config, RATE, 1)
    # EnCodec: full frames only; three strides of 2 over 513 bins.
    assert stft.logits.shape == (2, 1 + (RATE - 1024) // 256, 65, 1)
    assert [f.shape[2] for f in stft.features] == [513, 257, 129, 65, 65]
    # HiFi-GAN: ceil(16000 / 7) rows, four strides of 3.
    assert period.logits.shape == (2, -(-2286 // 81), 7, 1)
    # DAC: ceil(T / hop) frames; five layers a band.
    assert band.logits.shape[:2] == (2, RATE // 128)
    assert len(band.features) == 25
    # MelGAN: 4^4 in all, at half the rate for the second scale.
    assert wave.logits.shape == (2, -(-RATE // 256), 1)
    assert wave_half.logits.shape == (2, -(-(RATE // 2) // 256), 1)
    assert [f.shape[-1] for f in wave.features] == [16, 64, 256, 1024, 1024, 1024]


def test_periods_put_every_pth_sample_in_a_column():
    audio = jnp.arange(20.0).reshape(1, 10, 2)
    folded = d.fold_periods(audio, 3)
    assert folded.shape == (1, 4, 3, 2)
    assert_allclose(folded[0, :, 0], audio[0, ::3])
    assert_allclose(folded[0, 3, 1:], audio[0, [8, 7]])  # reflected without the edge
    assert d.fold_periods(audio[:, :9], 3).shape[1] == 4  # a full signal gets one row more


def test_band_edges_are_dacs():
    assert d.band_edges(2048, d.DAC_BANDS) == [
        (0, 102),
        (102, 256),
        (256, 512),
        (512, 768),
        (768, 1025),
    ]


def test_spectrogram_planes_are_the_transform():
    """Real parts of both channels, then imaginary ones; one frame by the definition."""
    audio = noise(0, 1, 512, 2)
    planes = d.spectrogram_planes(audio, 128, matched=False)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(128) / 128)
    frame = np.fft.rfft(np.asarray(audio)[0, 64:192].T * window / np.linalg.norm(window))
    assert planes.shape == (1, 13, 65, 4)
    assert_allclose(planes[0, 2, :, :2], frame.real.T, atol=1e-5)
    assert_allclose(planes[0, 2, :, 2:], frame.imag.T, atol=1e-5)
    assert d.spectrogram_planes(audio[:, :500], 128, matched=True).shape[1] == -(-500 // 32)


def test_half_rate_keeps_a_constant():
    assert_allclose(d.halve_rate(jnp.ones((1, 16, 1))), np.ones((1, 8, 1)), rtol=1e-6)


def test_weight_norm_starts_at_the_plain_kernel():
    layer = d.Conv(3, (5,))
    x = noise(1, 1, 20, 2)
    variables = layer.init(jax.random.key(0), x)
    plain = d.Conv(3, (5,), weight_norm=False)
    bare = {k: v for k, v in variables["params"].items() if k != "scale"}
    assert_allclose(layer.apply(variables, x), plain.apply({"params": bare}, x), rtol=1e-5)
    doubled = {"params": {**variables["params"], "kernel": 2 * variables["params"]["kernel"]}}
    assert_allclose(layer.apply(variables, x), layer.apply(doubled, x), rtol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    model = d.Discriminator(TINY)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1200, 1)))
    return variables, jax.jit(model.apply)


def test_examples_are_independent(tiny):
    variables, apply = tiny
    audio = noise(2, 2, 1200, 1)
    changed = audio.at[1].set(0.0)
    for a, b in zip(apply(variables, audio), apply(variables, changed)):
        assert_allclose(a.logits[0], b.logits[0], atol=1e-6)
        assert np.abs(a.logits[1] - b.logits[1]).max() > 1e-4


def test_normalize_takes_away_level_and_offset(tiny):
    variables, apply = tiny
    audio = noise(3, 1, 1200, 1)
    for a, b in zip(apply(variables, audio), apply(variables, 0.1 * audio + 0.5)):
        assert_allclose(a.logits, b.logits, atol=1e-4)


def test_outputs_are_float32_in_bfloat16():
    config = d.DiscriminatorConfig(stft_windows=(128,), stft_filters=4, dtype="bfloat16")
    params, verdicts = shapes_of(config, 1024, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, verdicts))} == {jnp.dtype("float32")}
