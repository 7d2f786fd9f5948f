"""Causal codecs as streams: block by block equals offline."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.codec.config import CodecConfig
from mgen.codec.model import Codec
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.nn.streaming import verify_streaming

CAUSAL = CodecConfig(
    sample_rate=1000,
    filters=2,
    strides=(2, 5),
    causal=True,
    latent_dim=4,
    num_codebooks=2,
    codebook_size=8,
)
# SoundStream pads by zeros, EnCodec mirrors and has an LSTM.
CASES = {
    "soundstream": CAUSAL.replace(dilations=(1, 3), residual_kernel=7, compress=1),
    "encodec": CAUSAL.replace(
        lstm_layers=1, pad_mode="reflect", align_input=False, conv_shortcut=True
    ),
}
FIRST_BLOCK = {"soundstream": 1, "encodec": 7}


@pytest.fixture(scope="module", params=CASES)
def case(request, random_variables):
    """Name and codec."""
    variables = dict(random_variables(CASES[request.param]))
    return request.param, FrozenCodec(CASES[request.param], variables.pop("params"), variables)


def noise(frames, width, hop=1):
    rng = np.random.default_rng(frames)
    return jnp.asarray(rng.standard_normal((2, frames * hop, width)), jnp.float32)


@settings(max_examples=3, deadline=None)
@given(sizes=st.permutations([1, 1, 2]))
def test_codec_equals_step(case, sizes):
    _, codec = case
    # The same lengths in another order, so that examples share what is compiled.
    sizes = [7, *sizes]
    hop = codec.config.hop
    audio, latents = noise(sum(sizes), 1, hop), noise(sum(sizes), 4)
    offline = codec.encode_latents(audio)
    assert float(jnp.std(offline)) > 0.01
    verify_streaming(
        codec.model,
        codec.variables,
        audio,
        [size * hop for size in sizes],
        offline="encode",
        init_state="encoder_state",
        step="encode_step",
    )
    verify_streaming(
        codec.model,
        codec.variables,
        latents,
        sizes,
        offline="decode",
        init_state="decoder_state",
        step="decode_step",
    )


def test_frozen_streams_equal_offline(case):
    name, codec = case
    audio = noise(15, 1, codec.config.hop)
    encoder, decoder = codec.stream_encoder(num_codebooks=1), codec.stream_decoder()
    assert encoder.first_block_frames == FIRST_BLOCK[name]
    encoder_state, decoder_state = encoder.init_state(2), decoder.init_state(2)
    codes, decoded = [], []
    for frames in np.split(np.arange(15), [7, 11]):
        block = audio[:, frames[0] * 10 : (frames[-1] + 1) * 10]
        encoder_state, block_codes = encoder.step(encoder_state, block)
        decoder_state, block_audio = decoder.step(decoder_state, block_codes)
        codes.append(block_codes)
        decoded.append(block_audio)
    codes = np.concatenate(codes, 1)
    np.testing.assert_array_equal(codes, codec.encode(audio, 1))
    np.testing.assert_allclose(np.concatenate(decoded, 1), codec.decode(codes), atol=1e-5)


def test_a_block_of_another_length_is_refused_by_name(case):
    name, codec = case
    block = {"encodec": 60, "soundstream": 65}[name]
    stream = codec.stream_encoder()
    with pytest.raises(UserError, match=rf"a block of {block} steps, expected a multiple of 10"):
        stream.step(stream.init_state(1), jnp.zeros((1, block, 1)))


@pytest.mark.parametrize(
    "changes", [dict(causal=False), dict(normalize=True), dict(segment_seconds=0.1)]
)
def test_codecs_that_cannot_stream_say_so(changes, random_variables):
    config = CAUSAL.replace(bottleneck="none", **changes)
    codec = FrozenCodec(config, random_variables(config)["params"])
    with pytest.raises(UserError, match="cannot stream: expected causal=True"):
        codec.stream_encoder()
    if not config.causal:
        with pytest.raises(ValueError, match="only a causal"):
            Codec(codec.config).apply(codec.variables, 1, method="encoder_state")
