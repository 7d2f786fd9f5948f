"""CLAP against transformers: converted random weights, towers and embeddings.

Tolerance 1e-4: float32 sums over up to 72 terms in another order, values of order 1.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.interop import clap
from mgen.joint.config import JointConfig
from mgen.joint.htsat import HTSAT
from mgen.joint.loss import normalise
from mgen.joint.model import JointModel, log_mel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
AUDIO = {
    "tiny": dict(
        spec_size=256,
        patch_size=4,
        patch_stride=4,
        num_mel_bins=64,
        patch_embeds_hidden_size=16,
        hidden_size=32,
        depths=[2, 2],
        num_attention_heads=[2, 4],
        num_hidden_layers=2,
        projection_dim=24,
    ),
    # A window that does not divide the map (18, 9), so that its edge is padded; three folds.
    "odd": dict(
        spec_size=108,
        patch_size=6,
        patch_stride=[6, 6],
        num_mel_bins=36,
        window_size=5,
        patch_embeds_hidden_size=18,
        hidden_size=36,
        depths=[3, 2],
        num_attention_heads=[3, 6],
        num_hidden_layers=2,
        projection_dim=20,
        mlp_ratio=2.5,
        hidden_act="relu",
        layer_norm_eps=1e-3,
    ),
}
TEXT = {
    "tiny": dict(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    ),
    "odd": dict(
        vocab_size=23,
        hidden_size=42,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=50,
        max_position_embeddings=33,
        type_vocab_size=2,
        pad_token_id=3,
        hidden_act="relu",
        layer_norm_eps=1e-3,
    ),
}
FRAMES = {"tiny": (1001, 1024), "odd": (211, 324)}


def numpy_state(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def perturb(module):
    """Weights and statistics far from their initial values."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.2 * torch.randn_like(tensor)
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return module.eval()


@pytest.fixture(scope="module", params=AUDIO)
def audio_pair(request):
    torch.manual_seed(0)
    shape = transformers.ClapAudioConfig(**AUDIO[request.param])
    theirs = perturb(transformers.ClapAudioModel(shape))
    config = clap.htsat_config(shape)
    params = clap.htsat_params(config, numpy_state(theirs))
    return theirs, config, params, FRAMES[request.param]


def test_htsat(audio_pair):
    """Both a spectrogram that is stretched and one of full length."""
    theirs, config, params, lengths = audio_pair
    assert lengths[-1] == config.frames
    for frames in lengths:
        mel = np.random.default_rng(0).normal(size=(2, frames, config.mels)).astype(np.float32)
        with torch.inference_mode():
            expected = theirs(input_features=torch.tensor(mel)[:, None])
        ours = jax.jit(HTSAT(config).apply)({"params": params}, mel)
        last = expected.last_hidden_state.numpy()
        assert last.std() > 0.3
        last = last.reshape(*last.shape[:2], -1).transpose(0, 2, 1)
        np.testing.assert_allclose(ours.tokens, last, atol=TOLERANCE)
        np.testing.assert_allclose(ours.pooled, expected.pooler_output.numpy(), atol=TOLERANCE)


def embed_mel(model, mel, unit):
    """What `JointModel.embed_audio` does behind its front end, which has a test of its own."""
    vector = model.audio_projection(model.audio_tower(mel).pooled, False)
    return normalise(vector) if unit else vector


def embed_text(model, ids, mask, unit):
    vector = model.text_projection(model.text_tower(ids, mask).pooled, False)
    return normalise(vector) if unit else vector


def build(size):
    torch.manual_seed(0)
    shape = transformers.ClapConfig(
        text_config=TEXT[size],
        audio_config=AUDIO[size],
        projection_dim=AUDIO[size]["projection_dim"],
    )
    return perturb(transformers.ClapModel(shape))


@pytest.fixture(scope="module", params=AUDIO)
def pair(request):
    theirs = build(request.param)
    seconds = (FRAMES[request.param][0] - 1) / 100
    config = clap.clap_config(theirs.config, seconds=seconds)
    return theirs, config, clap.clap_params(config, numpy_state(theirs))


def test_parameters_are_those_of_the_joint_model(pair):
    _, config, params = pair
    audio = jnp.zeros((1, config.samples, 1))
    ids = jnp.zeros((1, 4), jnp.int32)
    expected = jax.eval_shape(JointModel(config).init, jax.random.key(0), audio, ids, ids == 0)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, expected["params"])


def test_audio_features(pair):
    theirs, config, params = pair
    mel = np.random.default_rng(0).normal(size=(2, *config.spectrogram)).astype(np.float32)
    with torch.inference_mode():
        features = torch.tensor(mel)[:, None]
        expected = theirs.get_audio_features(input_features=features).pooler_output.numpy()
        pooled = theirs.audio_model(input_features=features).pooler_output
        plain = theirs.audio_projection(pooled).numpy()
    run = jax.jit(JointModel(config).apply, static_argnames=("unit", "method"))
    for unit, want in ((True, expected), (False, plain)):
        ours = run({"params": params}, mel, unit=unit, method=embed_mel)
        assert np.abs(want[0] - want[1]).max() > 0.01
        np.testing.assert_allclose(ours, want, atol=TOLERANCE)


def test_text_features(pair):
    theirs, config, params = pair
    pad, length = theirs.config.text_config.pad_token_id, config.text_length
    ids = np.random.default_rng(0).integers(pad + 1, config.text.vocab_size, (2, length))
    mask = np.arange(length)[None] < np.asarray([[length], [7]])
    ids = np.where(mask, ids, pad)
    given = dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(np.int64)))
    with torch.inference_mode():
        expected = theirs.get_text_features(**given).pooler_output.numpy()
        plain = theirs.text_projection(theirs.text_model(**given).pooler_output).numpy()
    run = jax.jit(JointModel(config).apply, static_argnames=("unit", "method"))
    for unit, want in ((True, expected), (False, plain)):
        ours = run(
            {"params": params}, jnp.asarray(ids, jnp.int32), mask, unit=unit, method=embed_text
        )
        assert np.abs(want[0] - want[1]).max() > 0.01
        np.testing.assert_allclose(ours, want, atol=TOLERANCE)


def test_audio_to_embedding():
    """From samples, through the front end of the released checkpoints (`preprocessor_config.json`
    of laion/clap-htsat-unfused has 50 to 14000 Hz). Tolerance of the spectrogram 2e-3 dB: float32
    against float64 in the emptiest bins."""
    theirs = build("tiny")
    config = clap.clap_config(theirs.config)
    params = clap.clap_params(config, numpy_state(theirs))
    audio = np.random.default_rng(0).normal(size=(2, config.samples)).astype(np.float32) * 0.1
    extract = transformers.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    features = extract(list(audio), sampling_rate=config.sample_rate, return_tensors="pt")
    mel = features["input_features"].float()
    ours = log_mel(config.mel, jnp.asarray(audio)[..., None], config.sample_rate)
    np.testing.assert_allclose(ours, mel[:, 0].numpy(), atol=2e-3)
    with torch.inference_mode():
        expected = theirs.get_audio_features(input_features=mel).pooler_output.numpy()
    embed = jax.jit(JointModel(config).apply, static_argnames="method")
    ours = embed({"params": params}, jnp.asarray(audio)[..., None], method="embed_audio")
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


def test_published_shape():
    """laion/clap-htsat-unfused: 153.5 million parameters, and the experiment of that name."""
    shape = transformers.ClapConfig()
    with torch.device("meta"):
        theirs = transformers.ClapModel(shape)
    config = clap.clap_config(shape)
    audio = jnp.zeros((1, config.samples, 1))
    ids = jnp.zeros((1, 4), jnp.int32)
    ours = jax.eval_shape(JointModel(config).init, jax.random.key(0), audio, ids, ids == 0)
    # Theirs has a second temperature.
    count = sum(p.numel() for p in theirs.parameters()) - 1
    assert tree.size(ours) == count
    assert round(count / 1e6, 1) == 153.5
    trained = JointConfig.from_experiment(
        importlib.import_module("configs.joint.clap").get_config()
    )
    # The experiment normalises by constants what the checkpoint normalises by its statistics.
    assert dataclasses.replace(trained.mel, mean=0.0, std=1.0) == config.mel
    assert (trained.projection, trained.embed_dim) == (config.projection, config.embed_dim)
    assert trained.spectrogram == config.spectrogram


@pytest.mark.parametrize(
    "name",
    [
        "audio_model.audio_encoder.layers.1.blocks.0.attention.self.relative_position_bias_table",
        "text_projection.linear2.bias",
        "text_model.pooler.dense.weight",
    ],
)
def test_weights_that_do_not_fit_are_named(pair, name):
    theirs, config, _ = pair
    state = numpy_state(theirs)
    with pytest.raises(UserError, match=f"{name} is missing"):
        clap.clap_params(config, {key: value for key, value in state.items() if key != name})
    with pytest.raises(UserError, match=rf"{name} has shape \(3,\)"):
        clap.clap_params(config, {**state, name: np.zeros(3)})
    with pytest.raises(UserError, match=r"extra\.weight has no place"):
        clap.clap_params(config, {**state, "extra.weight": np.zeros(3)})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(enable_fusion=True), "audio_config.enable_fusion is True, expected False"),
        (dict(patch_stride=(2, 2)), "audio_config.patch_stride is (2, 2), expected (4, 4)"),
        (dict(hidden_act="mish"), "audio_config.hidden_act is 'mish'"),
    ],
)
def test_other_settings_are_refused(change, message):
    shape = transformers.ClapAudioConfig(**change)
    with pytest.raises(UserError) as error:
        clap.htsat_config(shape)
    assert message in str(error.value)
