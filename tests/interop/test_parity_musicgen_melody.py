"""MusicGen-Melody against transformers: converted random weights, logits, greedy codes.

Tolerance 1e-4: float32 sums over up to 64 terms in another order, logits of order 1.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.interop import musicgen, text_encoders
from mgen.joint.text import TextTower
from mgen.lm.condition import Condition, absent
from mgen.lm.config import LMConfig
from mgen.lm.filters import SamplingConfig
from mgen.lm.model import LM
from mgen.lm.sample import FrozenLM
from mgen.lm.task import Task

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

B, C, N, FRAMES = 2, 5, 7, 12  # N of chroma
MASK = np.asarray([[1, 1, 1, 0, 0], [1] * 5])


def numpy_state(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    text = transformers.T5Config(
        vocab_size=20, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    codec = transformers.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=64, codebook_dim=16, num_lstm_layers=1
    )
    decoder = transformers.MusicgenMelodyDecoderConfig(
        vocab_size=64,
        num_hidden_layers=2,
        hidden_size=32,
        ffn_dim=64,
        num_attention_heads=4,
        num_codebooks=4,
        pad_token_id=64,
        bos_token_id=64,
    )
    whole = transformers.MusicgenMelodyConfig(
        text_encoder=text, audio_encoder=codec, decoder=decoder, chroma_length=N
    )
    model = transformers.MusicgenMelodyForConditionalGeneration(whole).eval()
    parts = model.decoder, model.text_encoder, model.enc_to_dec_proj, model.audio_enc_to_dec_proj
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.update(
        decoder_start_token_id=64, bos_token_id=64, pad_token_id=64, eos_token_id=None
    )
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    config = musicgen.lm_config(theirs.config.decoder, front=(12, 24))
    return config, musicgen.lm_params(config, numpy_state(theirs))


@pytest.fixture(scope="module")
def given(theirs):
    """Text ids, chroma, and our condition from them."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 20, (B, C))
    chroma = np.eye(12, dtype=np.float32)[rng.integers(0, 12, (B, N))]
    tower = text_encoders.t5_config(theirs.config.text_encoder)
    params = text_encoders.t5_params(tower, numpy_state(theirs.text_encoder))
    inputs = jnp.asarray(ids, jnp.int32), jnp.asarray(MASK, bool)
    vectors = TextTower(tower).apply({"params": params}, *inputs, method="hidden_states")[-1]
    masks = np.ones((B, N), bool), MASK.astype(bool)
    return ids, chroma, Condition(front=(chroma, vectors), front_mask=masks)


def test_logits(theirs, ours, given):
    config, params = ours
    ids, chroma, condition = given
    codes = np.random.default_rng(1).integers(0, 64, (B, 9, 4))
    layout = config.make_layout()
    tokens = np.asarray(layout.shift(layout.encode(jnp.asarray(codes))))
    with torch.inference_mode():
        logits = theirs(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(MASK),
            input_features=torch.tensor(chroma),
            decoder_input_ids=torch.tensor(tokens.transpose(0, 2, 1).reshape(B * 4, -1)),
        ).logits.numpy()
    logits = logits.reshape(B, 4, -1, 64)[:, :, N + C :].transpose(0, 2, 1, 3)
    expected = np.asarray(layout.decode(logits, 9))
    assert expected.std() > 0.3
    found = LM(config).apply({"params": params}, jnp.asarray(codes, jnp.int32), condition)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_greedy_generation_with_guidance(theirs, ours, given):
    ids, chroma, condition = given
    heard = []
    decode = theirs.audio_encoder.decode
    theirs.audio_encoder.decode = lambda codes, *args, **kwargs: (
        heard.append(codes.numpy()) or decode(codes, *args, **kwargs)
    )
    with torch.inference_mode():
        theirs.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(MASK),
            input_features=torch.tensor(chroma),
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=FRAMES + 3,
        )
    expected = heard[0].reshape(B, -1, heard[0].shape[-1]).transpose(0, 2, 1)
    assert expected.shape == (B, FRAMES, 4) and len(np.unique(expected)) > 5
    model = FrozenLM.from_trained(*ours)

    def codes(nothing):
        variants = [(3.0, condition), (-2.0, nothing)]
        arguments = dict(frames=FRAMES, seeds=np.arange(B), variants=variants)
        return model.generate(**arguments, sampling=SamplingConfig(temperature=0.0))

    np.testing.assert_array_equal(codes(musicgen.unconditional(condition)), expected)
    # Their unconditional melody is not the absence of one.
    assert np.any(codes(absent(ours[0], condition)) != expected)


def test_parameter_count_of_the_released_size():
    shape = transformers.MusicgenMelodyDecoderConfig(
        hidden_size=1536, num_attention_heads=24, num_hidden_layers=48, ffn_dim=4 * 1536
    )
    with torch.device("meta"):
        decoder = transformers.MusicgenMelodyForCausalLM(shape)
        parts = decoder, torch.nn.Linear(768, 1536), torch.nn.Linear(12, 1536)
    expected = sum(p.numel() for part in parts for p in part.parameters())
    task = Task(importlib.import_module("configs.hierarchy.musicgen_melody").get_config())
    params = jax.eval_shape(task.init_variables, jax.random.key(0))["params"]
    assert tree.size(params) == expected
    converted = musicgen.lm_config(shape, front=(12, 768))
    # Remat and dtype say how it is trained, not what it is: converted weights run in float32.
    ours = {**vars(task.lm_config), "remat": "none", "dtype": "float32"}
    assert converted == LMConfig(**ours)
