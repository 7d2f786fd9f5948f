"""The model: published sizes, front end, masks, independence of batch mates, captions."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.joint.config import JointConfig, MelConfig, SpecAugmentConfig
from mgen.joint.model import RNG_STREAMS, JointModel, log_mel, spec_augment
from mgen.joint.task import Task


def experiment(name, arg="smoke"):
    return importlib.import_module(f"mgen.configs.joint.{name}").get_config(arg)


def inputs(config, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    pitch = rng.uniform(0.005, 0.3, (batch, 1, config.channels))
    audio = np.sin(2 * np.pi * pitch * np.arange(config.samples)[None, :, None])
    audio += 0.1 * rng.normal(size=audio.shape)
    ids = rng.integers(4, config.text.vocab_size, (batch, config.text_length)).astype(np.int32)
    lengths = rng.integers(3, config.text_length, batch)
    return (
        jnp.asarray(0.1 * audio, jnp.float32),
        jnp.asarray(ids),
        jnp.arange(ids.shape[1])[None] < lengths[:, None],
    )


def rngs(seed=0):
    return dict(zip(RNG_STREAMS, jax.random.split(jax.random.key(seed), len(RNG_STREAMS))))


# BERT-base, RoBERTa-base and CLAP are the counts of the released models; CLAP has a second
# temperature there. The others: towers of known size plus projections.
BERT, ROBERTA, HTSAT = 109_482_240, 124_645_632, 27_534_488
PUBLISHED = {
    "mulan_ast": 86_168_832 + BERT + 2 * (768 + 1) * 128 + 1,
    "mulan_resnet": 23_501_760 + BERT + (2048 + 1) * 128 + (768 + 1) * 128 + 1,
    "clap": 153_492_890 - 1,
    "musiccoca": 250_169_089,
    "slap": 202_321_945,
}
# Of a block 4 x 512 x 384 weights of attention, 2 x 512 x 1024 of the feed-forward, their biases
# and two norms; 100 positions, patches of 4 x 128 values and the final norm; 512 to 192.
MELODY_BLOCK = 4 * 512 * 384 + 3 * 384 + 512 + 2 * 512 * 1024 + 1024 + 512 + 4 * 512
MELODY = 12 * MELODY_BLOCK + 512 * (100 + 4 * 128 + 1 + 2) + (512 + 1) * 192 + 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name):
    task = Task(experiment(name, ""))
    params = jax.eval_shape(task.init_variables, jax.random.key(0))["params"]
    assert tree.size(params) == PUBLISHED[name]
    text = {"clap": ROBERTA, "slap": ROBERTA, "mulan_ast": BERT, "mulan_resnet": BERT}
    assert tree.size(params["text_tower"]) == text.get(name, 109_730_304)
    if name == "clap":
        assert tree.size(params["audio_tower"]) == HTSAT
        hidden = 768 * 512 + 512 + 512 * 512 + 512
        assert tree.size(params["audio_projection"]) == hidden


def test_parameters_of_the_published_melody_embedding():
    task = Task(experiment("melody_vit", ""))
    params = jax.eval_shape(task.init_variables, jax.random.key(0))["params"]
    assert tree.size(params) == MELODY == 22_496_449
    assert "text_tower" not in params and "text_projection" not in params
    audio = task.batch_spec(2)["audio"]
    pair = functools.partial(task.model.apply, method=JointModel.pair)
    shapes = jax.eval_shape(pair, {"params": params}, audio, audio)
    assert shapes.audio.shape == shapes.text.shape == (2, 192)
    assert task.joint_config.spectrogram == (401, 128) and task.joint_config.audio.grid == (100, 1)


@pytest.mark.parametrize("name", ["mulan_ast", "clap"])
def test_front_end_equals_librosa(name):
    """Natural log or dB; 1e-2 in units of the deviation at quiet bins of a float32 FFT."""
    config = JointConfig.from_experiment(experiment(name, ""))
    mel, rate = config.mel, config.sample_rate
    audio = np.random.default_rng(0).normal(size=(1, rate // 2, 2)).astype(np.float32)
    power = librosa.feature.melspectrogram(
        y=audio.mean(axis=-1)[0],
        sr=rate,
        n_fft=mel.n_fft,
        win_length=mel.win_length,
        hop_length=mel.hop,
        n_mels=mel.n_mels,
        fmin=mel.fmin,
        fmax=mel.fmax or None,
        htk=mel.htk,
        norm="slaney" if mel.unit_area else None,
        pad_mode="reflect",
    )
    loud = 10 * np.log10(power) if mel.scale == "db" else np.log(np.maximum(power, mel.floor))
    ours = log_mel(mel, jnp.asarray(audio), rate)
    np.testing.assert_allclose(ours[0].T, (loud - mel.mean) / mel.std, atol=1e-2)
    assert config.spectrogram == (1001, mel.n_mels)


def test_spec_augment_masks_every_example_for_itself():
    config = SpecAugmentConfig(time_masks=2, time_width=0.2, mel_masks=1, mel_width=0.3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 50, 20)), jnp.float32)
    masked = spec_augment(config, jax.random.key(0), x)
    other = spec_augment(config, jax.random.key(0), x.at[1:].add(1.0))
    np.testing.assert_array_equal(masked[0], other[0])
    changed = np.asarray(masked != x)
    np.testing.assert_allclose(
        np.asarray(masked)[changed],
        np.broadcast_to(x.mean((1, 2))[:, None, None], x.shape)[changed],
    )
    columns, bands = changed.all(axis=2).sum(axis=1), changed.all(axis=1).sum(axis=1)
    assert columns.max() <= 22 and bands.max() <= 7  # 2 x 10 frames and 6 bins, each rounded up
    assert len(np.unique(columns)) > 5 and columns.max() > 8 and bands.max() > 3
    assert not (changed & ~(changed.all(axis=2)[:, :, None] | changed.all(axis=1)[:, None])).any()


@pytest.mark.parametrize("name", ["tiny_mulan", "tiny_resnet", "tiny_clap"])
def test_embeddings_do_not_depend_on_batch_mates(name):
    """In training too: the same key, other examples beside the first one."""
    settings = experiment(name)
    with settings.unlocked():
        settings.model.audio.dropout = 0.1
        settings.model.text.dropout = 0.1
        if name == "tiny_resnet":
            del settings.model.audio.dropout
    config = JointConfig.from_experiment(settings)
    model = JointModel(config)
    first, second = inputs(config), inputs(config, seed=1)
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b[1:]]), first, second)
    variables = jax.jit(model.init)(jax.random.key(0), *first)

    @jax.jit
    def embed(audio, ids, mask):
        return [
            model.apply(variables, audio, ids, mask, train, rngs=rngs(), method="project")
            for train in (False, True)
        ]

    a, b = embed(*first), embed(*mixed)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[0], y[0], atol=1e-6), a, b)
    assert all(np.abs(x[1] - y[1]).max() > 1e-3 for x, y in zip(a[0], b[0]))
    # Training is another function, and every embedding has length 1.
    assert all(np.abs(x - y).max() > 1e-4 for x, y in zip(*a))
    np.testing.assert_allclose(jnp.linalg.norm(jnp.stack(a[0] + a[1]), axis=-1), 1.0, rtol=1e-5)
    # What stands behind the mask does not count.
    audio, ids, mask = first
    behind = embed(audio, jnp.where(mask, ids, 5), mask)
    np.testing.assert_allclose(behind[0][1], a[0][1], atol=1e-6)


def test_captions_are_causal_and_hear_the_audio():
    config = JointConfig.from_experiment(experiment("tiny_coca"))
    model = JointModel(config)
    audio, ids, mask = inputs(config)
    variables = jax.jit(model.init)(jax.random.key(0), audio, ids, mask)
    run = jax.jit(lambda *args: model.apply(variables, *args).caption_logits)
    logits = run(audio, ids, mask)
    assert logits.shape == (3, config.text_length - 1, config.text.vocab_size)
    changed = run(audio, ids.at[:, 6].add(1), mask) - logits
    assert np.abs(changed[:, :6]).max() < 1e-6 and np.abs(changed[:, 6]).max() > 1e-5
    assert np.abs(run(audio[::-1], ids, mask) - logits)[0].max() > 1e-5


def test_channels_are_averaged():
    settings = experiment("tiny_mulan")
    mono = JointConfig.from_experiment(settings)
    audio, ids, mask = inputs(mono)
    variables = jax.jit(JointModel(mono).init)(jax.random.key(0), audio, ids, mask)
    stereo = JointModel(dataclasses.replace(mono, channels=2))
    wide = jnp.concatenate([1.5 * audio, 0.5 * audio], axis=-1)
    np.testing.assert_allclose(
        stereo.apply(variables, wide, method="embed_audio"),
        JointModel(mono).apply(variables, audio, method="embed_audio"),
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["mulan_ast", "mulan_resnet", "clap", "slap", "tiny_coca"])
def test_config_goes_through_json_and_back(name):
    import json

    settings = experiment(name, "")
    config = JointConfig.from_experiment(settings)
    fields = json.loads(json.dumps(config.model_fields()))
    data = settings.data
    assert config == JointConfig.from_fields(
        fields,
        sample_rate=data.sample_rate,
        channels=data.channels,
        seconds=data.seconds,
        text_length=data.text_length,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(audio_kind="lstm"), r"model\.audio_kind is 'lstm'"),
        (dict(projection="deep"), r"model\.projection is 'deep'"),
        (dict(embed_dim="wide"), r"model\.embed_dim is 'wide', expected int"),
        (dict(colour=1), r"model\.colour: unknown field"),
        (dict(text={}), r"model\.text\.vocab_size: missing"),
        (dict(mel=dict(scale="bark")), r"model\.mel\.scale is 'bark'"),
        (dict(mel=dict(win_length=9999)), r"model\.mel\.win_length is 9999"),
        (dict(spec_augment=dict(time_width=2.0)), r"model\.spec_augment\.time_width is 2\.0"),
        (dict(text=dict(vocab_size=9, max_length=3)), r"model\.text\.max_length is 3"),
        (dict(audio_kind="resnet", audio=dict(width=8, groups=3)), r"model\.audio\.groups is 3"),
    ],
)
def test_bad_fields_are_named(fields, message):
    good = dict(text=dict(vocab_size=9), audio_kind="resnet")
    with pytest.raises(UserError, match=message):
        JointConfig.from_fields(good | fields)


def test_tower_and_front_end_must_agree():
    good = JointConfig.from_fields(dict(text=dict(vocab_size=9), audio=dict(dim=24, heads=2)))
    with pytest.raises(UserError, match=r"model\.audio\.mels is 128, expected the front end's 64"):
        dataclasses.replace(good, mel=MelConfig(n_mels=64))
    with pytest.raises(UserError, match=r"model\.audio\.frames is 1001, expected .* 501"):
        dataclasses.replace(good, seconds=5.0)
