"""Stems as latents and back: moments, the scale and its file, checks before training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.codec.config import CodecConfig
from mgen.codec.model import init_codec
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.metrics.frechet import Moments
from mgen.stems.latents import Scale, StemLatents, measure_scale, preflight

HOP, DIM = 4, 3
MEAN, STD = np.asarray([1.0, -2.0, 0.5], np.float32), np.asarray([0.5, 2.0, 3.0], np.float32)


class Toy(nn.Module):
    """Frames of four mono samples as three latents; loses what the pseudo-inverse does."""

    def setup(self):
        self.kernel = self.param("kernel", nn.initializers.normal(1.0), (DIM, HOP))

    def encode(self, audio):
        frames = audio.reshape(audio.shape[0], -1, HOP)
        return frames @ jnp.linalg.pinv(self.kernel)

    def decode(self, latents):
        return (latents @ self.kernel).reshape(latents.shape[0], -1, 1)


@pytest.fixture(scope="module")
def toy():
    kernel = np.random.default_rng(0).standard_normal((DIM, HOP)).astype(np.float32)
    return Toy(), {"params": {"kernel": jnp.asarray(kernel)}}


@pytest.fixture(scope="module")
def batches(toy):
    """Stems whose latents have `MEAN` and `STD`; every third is missing and full of noise."""
    module, variables = toy
    rng = np.random.default_rng(1)

    def make():
        latents = MEAN + STD * rng.standard_normal((2 * 3, 50, DIM)).astype(np.float32)
        stems = module.apply(variables, latents, method="decode").reshape(2, 3, -1, 1)
        present = np.asarray([[True, True, False], [True, False, True]])
        loud = 100 * rng.standard_normal(stems.shape).astype(np.float32)
        stems = np.where(present[..., None, None], stems, loud)
        return {"stems": stems, "stem_mask": present}

    return [make() for _ in range(4)]


def test_scale_is_that_of_the_stems_that_are_there(toy, batches):
    scale = measure_scale(*toy, batches)
    count = 4 * 4 * 50
    # Four standard errors.
    np.testing.assert_allclose(scale.mean, MEAN, atol=4 * 3 / count**0.5)
    np.testing.assert_allclose(scale.std / STD, 1, atol=4 / (2 * count) ** 0.5)
    latents = StemLatents(*toy, scale.mean, scale.std)
    z = [np.asarray(latents.encode(b["stems"]))[b["stem_mask"]] for b in batches]
    rows = np.concatenate(z).reshape(-1, DIM)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-4)


def test_tracks_come_back(toy, batches):
    """What the toy decodes it can encode; every track by itself."""
    latents = StemLatents(*toy, jnp.asarray(MEAN), jnp.asarray(STD))
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, DIM)), jnp.float32)
    stems = jax.jit(StemLatents.decode)(latents, z)
    assert stems.shape == (2, 3, 20, 1)
    np.testing.assert_allclose(jax.jit(StemLatents.encode)(latents, stems), z, atol=1e-4)
    one = latents.decode(z[1:, 2:])
    np.testing.assert_allclose(one[0, 0], stems[1, 2], atol=1e-5)


def test_scale_is_kept_and_that_of_another_codec_refused(tmp_path):
    scale = Scale(MEAN, STD / 3, "abc")
    scale.save(tmp_path / "scale", frames=17)
    found = Scale.load(tmp_path / "scale", "abc")
    np.testing.assert_array_equal(found.mean, scale.mean)
    np.testing.assert_array_equal(found.std, scale.std)
    with pytest.raises(UserError, match=r"parents\.codec is 'abc', expected 'other'"):
        Scale.load(tmp_path / "scale", "other")
    with pytest.raises(UserError, match=r"no manifest.json here"):
        Scale.load(tmp_path, "abc")
    Scale(MEAN, 0 * STD, "abc").save(tmp_path / "zero")
    with pytest.raises(UserError, match="std"):
        Scale.load(tmp_path / "zero", "abc")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((9, 3)), "median deviation 0.0"),
        (np.ones((1, 3)), "1 vectors"),
        (np.eye(9)[:, :3] * [1, 1, 1e-4], "channel 2 has deviation"),
        (np.eye(9)[:, :3] * [1e4, 1, 1], "channel 0 has deviation"),
        (np.eye(9)[:, :3] * [np.nan, 1, 1], "row 0 is not finite"),
    ],
)
def test_dead_and_broken_channels_are_named(rows, message):
    with pytest.raises(UserError, match=message):
        Scale.of(Moments.of(rows))


def test_no_stem_is_no_scale(toy, batches):
    empty = [dict(batches[0], stem_mask=np.zeros((2, 3), bool))]
    for none in ([], empty):
        with pytest.raises(UserError, match="no batch with a stem"):
            measure_scale(*toy, none)
    found, expected = (measure_scale(*toy, own + batches) for own in (empty, []))
    np.testing.assert_array_equal(found.std, expected.std)


def test_preflight_reports_the_round_trip(toy, batches):
    stems, present = batches[0]["stems"], batches[0]["stem_mask"]
    latents = StemLatents(*toy, jnp.asarray(MEAN), jnp.asarray(STD))
    found = preflight(latents, stems, present)
    assert 0.8 < found["least_std"] <= found["greatest_std"] < 1.2
    assert 2 < found["largest"] < 6
    assert found["si_sdr"] > 60  # what it decodes it encodes
    # Noise in the one direction of four that the toy does not know is lost.
    kernel = np.asarray(toy[1]["params"]["kernel"])
    lost = np.linalg.svd(kernel)[2][3]
    frames = stems.reshape(2, 3, -1, HOP)
    noise = np.random.default_rng(0).standard_normal((*frames.shape[:3], 1)) * lost
    noisy = (frames + 0.3 * noise).reshape(stems.shape).astype(np.float32)
    expected = 10 * np.log10(np.square(stems[present]).mean() / np.square(0.3 * noise).mean())
    # A stem's power is that of 50 frames: 20 % either way.
    assert abs(preflight(latents, noisy, present)["si_sdr"] - expected) < 1.0


def test_preflight_refuses_another_scale(toy, batches):
    latents = StemLatents(*toy, jnp.asarray(MEAN), jnp.asarray(STD * np.float32(3)))
    with pytest.raises(UserError, match=r"deviations from 0\.3"):
        preflight(latents, batches[0]["stems"], batches[0]["stem_mask"])


def test_latents_are_those_of_the_frozen_codec():
    config = CodecConfig(
        sample_rate=8000, channels=1, filters=2, multipliers=(1, 2), strides=(2, 2),
        decoder_filters=2, dilations=(), bottleneck="vae", latent_dim=3,
    )  # fmt: skip
    variables = jax.jit(lambda: init_codec(config, jax.random.key(0)))()
    codec = FrozenCodec(config, variables["params"])
    stems = np.random.default_rng(0).standard_normal((2, 2, 16, 1)).astype(np.float32)
    latents = StemLatents(codec.model, codec.variables, jnp.asarray(MEAN), jnp.asarray(STD))
    z = jax.jit(StemLatents.encode)(latents, stems)
    expected = (np.asarray(codec.encode_latents(stems.reshape(4, 16, 1))) - MEAN) / STD
    np.testing.assert_allclose(z.reshape(expected.shape), expected, atol=1e-5)
    audio = jax.jit(StemLatents.decode)(latents, z)
    expected = codec.decode_latents(expected * STD + MEAN)
    np.testing.assert_allclose(audio.reshape(expected.shape), expected, atol=1e-5)
