"""Inference: whole signals, chunks without seams, segments, and what is refused."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mgen.codec import chunked, receptive
from mgen.codec.blocks import decoder_layers, encoder_layers
from mgen.codec.config import CodecConfig
from mgen.codec.sample import FrozenCodec, _apply
from mgen.errors import UserError

TINY = CodecConfig(
    sample_rate=1000,
    filters=2,
    strides=(2, 5),
    latent_dim=4,
    num_codebooks=2,
    codebook_size=8,
    codebook_dim=3,
)
CASES = {
    "centred": TINY.replace(residual_kernel=7, dilations=(1, 3), compress=1),
    "musicgen": TINY.replace(lstm_layers=1, pad_mode="reflect", align_input=False),
    "causal": TINY.replace(causal=True, lstm_layers=1, pad_mode="reflect", align_input=False),
    "dac": TINY.replace(
        bottleneck="factorized_rvq",
        activation="snake",
        final_activation="tanh",
        output_padding=False,
        encoder_kernel_out=3,
    ),
    "oobleck": TINY.replace(channels=2, bottleneck="vae", activation="snake_beta"),
}
SEGMENTED = TINY.replace(
    norm="time_group",
    normalize=True,
    segment_seconds=0.1,
    segment_overlap=0.1,
    align_input=False,
    pad_mode="reflect",
)


@pytest.fixture(scope="module")
def frozen(random_variables):
    """config -> codec."""

    def make(config):
        variables = dict(random_variables(config))
        return FrozenCodec(config, variables.pop("params"), variables)

    return make


def noise(length, channels=1, batch=2):
    rng = np.random.default_rng(length)
    return (0.5 * rng.standard_normal((batch, length, channels))).astype(np.float32)


def in_blocks(x, sizes):
    return np.split(x, np.cumsum(sizes), axis=1)


@pytest.mark.parametrize("name", CASES)
def test_chunks_equal_one_pass(name, frozen):
    """No seam anywhere, whatever the blocks: 1e-4 leaves room for sums in another order."""
    codec = frozen(CASES[name])
    audio = noise(1234, codec.config.channels)
    latents = np.asarray(codec.encode_latents(audio))
    assert np.std(latents) > 0.01
    for blocks in (audio, in_blocks(audio, (1, 300, 7, 450))):
        chunks = list(codec.encode_chunks(blocks, seconds=0.2, latents=True))
        assert len(chunks) > 3
        np.testing.assert_allclose(np.concatenate(chunks, 1), latents, rtol=0, atol=1e-4)
    decoded = np.asarray(codec.decode_latents(latents))
    assert np.std(decoded) > 0.01
    for blocks in (latents, in_blocks(latents, (1, 60, 2))):
        chunks = list(codec.decode_chunks(blocks, seconds=0.2))
        assert len(chunks) > 3
        np.testing.assert_allclose(np.concatenate(chunks, 1), decoded, rtol=0, atol=1e-4)
    if codec.config.has_codes:
        codes = np.concatenate(list(codec.encode_chunks(audio, 1, seconds=0.2)), 1)
        np.testing.assert_array_equal(codes, codec.encode(audio, 1))


def test_a_short_signal_is_one_chunk(frozen):
    codec = frozen(CASES["centred"])
    audio = noise(35)
    np.testing.assert_array_equal(codec.encode_long(audio), codec.encode(audio))
    codes = codec.encode(audio)
    np.testing.assert_allclose(codec.decode_long(codes), codec.decode(codes), atol=1e-6)


def test_long_audio_takes_few_compilations_and_bounded_memory(frozen):
    codec = frozen(CASES["musicgen"])

    def endless(count):
        for _ in range(count):
            yield noise(170, batch=1)

    def consume(count):
        return max(block.nbytes for block in codec.encode_chunks(endless(count), seconds=0.2))

    consume(20)
    compiled = _apply._cache_size()
    assert consume(200) == consume(20)  # blocks do not grow with the signal
    assert _apply._cache_size() <= compiled + 1  # at most the end, of another length


def test_receptive_fields_are_where_gradients_are(frozen):
    for config in (CASES["centred"], CASES["dac"], TINY.replace(causal=True)):
        config = config.replace(bottleneck="none")
        codec, hop = frozen(config), config.hop
        frames, middle = 60, 30

        def frame(audio, codec=codec, middle=middle):
            return jnp.sum(codec.encode_latents(audio)[0, middle])

        gradient = np.asarray(jax.jit(jax.grad(frame))(jnp.asarray(noise(frames * hop, batch=1))))[
            0, :, 0
        ]
        touched = np.flatnonzero(gradient)
        left, right = receptive.context(encoder_layers(config), hop, 1)
        assert middle - left == touched[0] // hop
        assert middle + right == touched[-1] // hop

        def samples(latents, codec=codec, middle=middle, hop=hop):
            return jnp.sum(codec.decode_latents(latents)[0, middle * hop : (middle + 1) * hop])

        gradient = np.asarray(jax.jit(jax.grad(samples))(jnp.asarray(noise(frames, 4, batch=1))))[0]
        touched = np.flatnonzero(np.any(gradient, -1))
        left, right = receptive.context(decoder_layers(config), 1, hop)
        assert middle - left == touched[0]
        # The step that an odd layer lacks may ask for a frame more than the gradient sees.
        assert 0 <= middle + right - touched[-1] <= (0 if config.output_padding else 1)


def test_segments_overlap_and_carry_their_levels(frozen):
    codec = frozen(SEGMENTED)
    quiet_then_loud = noise(1000) * np.linspace(0.1, 1.0, 1000, dtype=np.float32)[None, :, None]
    codes, levels = codec.encode_with_levels(quiet_then_loud)
    # ceil((1000 - 10) / 90) segments of 10 frames.
    assert levels.shape == (2, 11) and codes.shape == (2, 110, 2)
    assert np.all(levels[:, -3] > 3 * levels[:, 0])
    chunks = np.concatenate(list(codec.encode_chunks(in_blocks(quiet_then_loud, (5, 400)))), 1)
    np.testing.assert_array_equal(chunks, codes)
    decoded = codec.decode(codes, levels)
    assert decoded.shape == (2, 1000, 1)
    first = codec.model.apply(
        codec.variables,
        codec.model.apply(codec.variables, codes[:, :10], method="dequantize"),
        method="decode",
    )
    first = first * levels[:, :1, None]
    np.testing.assert_allclose(decoded[:, :90], first[:, :90], atol=1e-5)
    np.testing.assert_array_equal(codec.encode(noise(3)).shape, (2, 10, 2))
    with pytest.raises(UserError, match="105 frames, expected a multiple of the 10"):
        codec.decode(codes[:, :105])


def test_overlap_add_of_equal_segments_is_the_signal():
    signal = noise(280)
    segments = np.stack([signal[:, i * 90 : i * 90 + 100] for i in range(3)], 1)
    np.testing.assert_allclose(chunked.overlap_add(segments, 90), signal, atol=1e-6)


def test_codecs_that_cannot_be_cut_say_so(frozen):
    whole = frozen(SEGMENTED.replace(segment_seconds=0.0, segment_overlap=0.0))
    with pytest.raises(UserError, match="cannot run in chunks"):
        whole.encode_chunks(noise(500))
    with pytest.raises(UserError, match="cannot run in chunks"):
        whole.decode_chunks(np.zeros((1, 5, 2), np.int32))


def test_bad_input_is_named(frozen):
    codec = frozen(CASES["centred"])
    with pytest.raises(UserError, match=r"audio of shape \(2, 50, 2\), expected \[B, T, 1\]"):
        codec.encode(noise(50, 2))
    with pytest.raises(UserError, match="3 codebooks, expected 1 to 2"):
        codec.encode(noise(50), 3)
    with pytest.raises(UserError, match="0 codebooks, expected 1 to 2"):
        codec.decode(np.zeros((1, 5, 0), np.int32))
    with pytest.raises(UserError, match="has latents, no codes"):
        frozen(CASES["oobleck"]).encode(noise(50, 2))
    with pytest.raises(UserError, match="no collection 'codebook'"):
        FrozenCodec(TINY, {})


def test_from_a_trained_experiment(random_variables):
    config = ml_collections.ConfigDict(dict(model=TINY.to_dict()))
    variables = dict(random_variables(TINY))
    params = variables.pop("params")
    codec = FrozenCodec.from_trained(config, params, {**variables, "balancer": {}})
    assert codec.config == TINY.replace(norm="none")
    assert codec.encode(noise(50)).shape == (2, 5, 2)
