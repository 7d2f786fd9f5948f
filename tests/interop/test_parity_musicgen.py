"""MusicGen's language model against transformers: converted random weights, logits, greedy codes.

Tolerance 1e-4: float32 sums over up to 72 terms in another order, logits of order 1.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.interop import encodec, musicgen, text_encoders
from mgen.joint.text import TextTower
from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig
from mgen.lm.filters import SamplingConfig
from mgen.lm.model import LM
from mgen.lm.sample import FrozenLM
from mgen.lm.task import Task

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SHAPES = {
    "tiny": dict(
        vocab_size=64,
        num_hidden_layers=2,
        hidden_size=32,
        ffn_dim=64,
        num_attention_heads=4,
        num_codebooks=4,
        pad_token_id=64,
        bos_token_id=64,
    ),
    "odd": dict(
        vocab_size=37,
        num_hidden_layers=3,
        hidden_size=72,
        ffn_dim=50,
        num_attention_heads=6,
        num_codebooks=3,
        activation_function="relu",
        pad_token_id=37,
        bos_token_id=37,
    ),
    "stereo": dict(
        vocab_size=16,
        num_hidden_layers=1,
        hidden_size=16,
        ffn_dim=32,
        num_attention_heads=2,
        num_codebooks=4,
        audio_channels=2,
        pad_token_id=16,
        bos_token_id=16,
    ),
}
B, L, C = 2, 9, 5
FRAMES = 64
MASK = np.asarray([[1, 1, 1, 0, 0], [1] * 5])


def numpy_state(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    torch.manual_seed(0)
    shape = transformers.MusicgenDecoderConfig(**SHAPES[request.param])
    theirs = transformers.MusicgenForCausalLM(shape).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    config = musicgen.lm_config(shape)
    return theirs, config, musicgen.lm_params(config, numpy_state(theirs))


@pytest.fixture(scope="module")
def inputs(pair):
    config = pair[1]
    rng = np.random.default_rng(0)
    codes = rng.integers(0, config.codebook_size, (B, L, config.num_codebooks))
    vectors = rng.normal(size=(B, C, config.condition_width)).astype(np.float32)
    return codes, vectors * MASK[..., None].astype(np.float32)


def logits_of_codes(theirs, config, codes, vectors, mask):
    """Their logits [B, F, K, V] of codes, read in the order of our layout."""
    layout = config.make_layout()
    tokens = layout.shift(layout.encode(jnp.asarray(codes)))
    logits = their_logits(theirs, np.asarray(tokens), vectors, mask)
    return layout.decode(logits, codes.shape[1])


def our_logits(config, params, codes, vectors):
    condition = Condition(vectors=jnp.asarray(vectors), mask=jnp.asarray(MASK, bool))
    return LM(config).apply({"params": params}, jnp.asarray(codes, jnp.int32), condition)


def their_logits(theirs, tokens, vectors, mask):
    """[B, L, K, V]; transformers puts batch and codebooks on one axis."""
    with torch.inference_mode():
        logits = theirs(
            input_ids=torch.tensor(tokens.transpose(0, 2, 1).reshape(-1, tokens.shape[1])),
            encoder_hidden_states=torch.tensor(vectors),
            encoder_attention_mask=torch.tensor(mask),
        ).logits
    streams = tokens.shape[2]
    return logits.reshape(-1, streams, *logits.shape[1:]).numpy().transpose(0, 2, 1, 3)


def test_logits(pair, inputs):
    theirs, config, params = pair
    expected = logits_of_codes(theirs, config, *inputs, MASK)
    assert expected.std() > 0.3
    np.testing.assert_allclose(our_logits(config, params, *inputs), expected, atol=1e-4)


def reference_generation(theirs, vectors, frames, guidance):
    """Greedy codes [B, F, K] in transformers' own delay pattern, without a cache."""
    shape = theirs.config
    streams, pad = shape.num_codebooks, shape.pad_token_id
    steps = frames + (streams // shape.audio_channels) - 1
    start = torch.full((B * streams, 1), pad)
    _, pattern = theirs.build_delay_pattern_mask(start, pad, max_length=steps + 1)
    ids = start
    for _ in range(steps):
        ids = theirs.apply_delay_pattern_mask(ids, pattern)
        tokens = ids.reshape(B, streams, -1).numpy().transpose(0, 2, 1)
        conditional = their_logits(theirs, tokens, vectors, MASK)[:, -1]
        nothing = their_logits(theirs, tokens, vectors * 0, np.ones_like(MASK))[:, -1]
        logits = nothing + guidance * (conditional - nothing)
        drawn = torch.tensor(logits.argmax(-1).reshape(-1, 1))
        ids = torch.cat([ids, drawn], dim=1)
    ids = theirs.apply_delay_pattern_mask(ids, pattern).reshape(B, streams, -1)
    kept = (pattern.reshape(B, streams, -1) != pad)[0]
    return np.stack([ids[:, k][:, kept[k]].numpy() for k in range(streams)], axis=-1)


def test_greedy_generation_with_guidance(pair, inputs):
    theirs, config, params = pair
    _, vectors = inputs
    frames = 12
    expected = reference_generation(theirs, vectors, frames, guidance=3.0)
    assert expected.shape == (B, frames, config.num_codebooks)
    codes = FrozenLM.from_trained(config, params).generate(
        frames=frames,
        seeds=np.arange(B),
        condition=Condition(vectors=vectors, mask=MASK.astype(bool)),
        sampling=SamplingConfig(temperature=0.0, guidance=3.0),
    )
    np.testing.assert_array_equal(codes, expected)


def test_conditional_model_projects_its_condition():
    torch.manual_seed(0)
    text = transformers.T5Config(
        vocab_size=20, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    codec = transformers.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=64, codebook_dim=16, num_lstm_layers=1
    )
    decoder = transformers.MusicgenDecoderConfig(**SHAPES["tiny"])
    theirs = transformers.MusicgenForConditionalGeneration(
        transformers.MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    ).eval()
    config = musicgen.lm_config(decoder, condition_width=24)
    params = musicgen.lm_params(config, numpy_state(theirs))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 64, (B, L, 4))
    vectors = rng.normal(size=(B, C, 24)).astype(np.float32)
    with torch.inference_mode():
        projected = theirs.enc_to_dec_proj(torch.tensor(vectors)).numpy() * MASK[..., None]
    projected = projected.astype(np.float32)
    expected = logits_of_codes(theirs.decoder, config, codes, projected, MASK)
    np.testing.assert_allclose(our_logits(config, params, codes, vectors), expected, atol=1e-4)


def test_generation_from_text_with_guidance():
    """`MusicgenForConditionalGeneration.generate`, greedy, guidance 3: the same codes and audio of
    the same text ids over 64 frames, with T5's encoder, language model and EnCodec converted."""
    torch.manual_seed(0)
    text = transformers.T5Config(
        vocab_size=20, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    codec = transformers.EncodecConfig(
        num_filters=4,
        hidden_size=16,
        codebook_size=64,
        codebook_dim=16,
        num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4, 4],
        sampling_rate=32000,
        # 4 codebooks of 6 bits at 50 Hz.
        target_bandwidths=[1.2],
        norm_type="weight_norm",
    )
    decoder = transformers.MusicgenDecoderConfig(**SHAPES["tiny"])
    whole = transformers.MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    theirs = transformers.MusicgenForConditionalGeneration(whole).eval()
    with torch.no_grad():
        for part in (theirs.decoder, theirs.text_encoder, theirs.enc_to_dec_proj):
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.generation_config.update(
        decoder_start_token_id=64, bos_token_id=64, pad_token_id=64, eos_token_id=None
    )
    ids = np.random.default_rng(0).integers(2, 20, (B, C))
    heard = []
    decode = theirs.audio_encoder.decode
    theirs.audio_encoder.decode = lambda codes, *args, **kwargs: (
        heard.append(codes.numpy()) or decode(codes, *args, **kwargs)
    )
    with torch.inference_mode():
        audio = theirs.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(MASK),
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=FRAMES + 3,
        ).numpy()
    expected = heard[0].reshape(B, -1, heard[0].shape[-1]).transpose(0, 2, 1)
    assert expected.shape == (B, FRAMES, 4) and len(np.unique(expected)) > 10
    tower = text_encoders.t5_config(text)
    params = text_encoders.t5_params(tower, numpy_state(theirs.text_encoder))
    inputs = jnp.asarray(ids, jnp.int32), jnp.asarray(MASK, bool)
    vectors = TextTower(tower).apply({"params": params}, *inputs, method="hidden_states")[-1]
    config = musicgen.lm_config(decoder, condition_width=24)
    lm = FrozenLM.from_trained(config, musicgen.lm_params(config, numpy_state(theirs)))
    codes = lm.generate(
        frames=FRAMES,
        seeds=np.arange(B),
        condition=Condition(vectors=vectors, mask=MASK.astype(bool)),
        sampling=SamplingConfig(temperature=0.0, guidance=3.0),
    )
    np.testing.assert_array_equal(codes, expected)
    ours = encodec.config(codec.to_dict())
    variables = encodec.from_torch(ours, numpy_state(theirs.audio_encoder))
    played = FrozenCodec(ours, variables.pop("params"), variables).decode(codes)
    # Float32 through ten layers, samples of order 1.
    np.testing.assert_allclose(played, audio.transpose(0, 2, 1), atol=1e-4)


@pytest.mark.parametrize(
    "name, dim, heads, layers",
    [("small", 1024, 16, 24), ("medium", 1536, 24, 48), ("large", 2048, 32, 48)],
)
def test_parameter_counts(name, dim, heads, layers):
    shape = transformers.MusicgenDecoderConfig(
        hidden_size=dim, num_attention_heads=heads, num_hidden_layers=layers, ffn_dim=4 * dim
    )
    with torch.device("meta"):
        theirs = transformers.MusicgenForCausalLM(shape)
        projection = torch.nn.Linear(768, dim)
    expected = sum(p.numel() for m in (theirs, projection) for p in m.parameters())
    task = Task(importlib.import_module(f"configs.hierarchy.musicgen_{name}").get_config())
    params = jax.eval_shape(task.init_variables, jax.random.key(0))["params"]
    assert tree.size(params) == expected
    converted = musicgen.lm_config(shape, condition_width=768)
    # Remat and dtype say how it is trained, not what it is: converted weights run in float32.
    ours = {**vars(task.lm_config), "remat": "none", "dtype": "float32"}
    assert converted == LMConfig(**ours)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("lm_heads.1.weight"), "lm_heads.1.weight is missing"),
        (lambda s: s.update({"extra": np.zeros(2)}), "extra has no place"),
        (
            lambda s: s.update({"model.decoder.layer_norm.bias": np.zeros(3)}),
            "model.decoder.layer_norm.bias has shape (3,)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(pair, change, message):
    theirs, config, _ = pair
    state = dict(numpy_state(theirs))
    change(state)
    with pytest.raises(UserError) as error:
        musicgen.lm_params(config, state)
    assert message in str(error.value)
