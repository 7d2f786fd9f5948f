"""Encoder and frozen encoder: batch mates, order of layers, frames, features of long audio."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen import tree
from mgen.errors import UserError
from mgen.nn.conformer import ConformerConfig
from mgen.nn.transformer import TransformerConfig
from mgen.semantic import sample
from mgen.semantic.config import (
    ConvFrontConfig,
    MelConfig,
    MelFrontConfig,
    SemanticConfig,
    TargetConfig,
)
from mgen.semantic.model import Encoder, Heads, Pretraining, stack_layers, unstack_layers
from mgen.semantic.sample import FrozenSemantic

MEL = MelConfig(n_fft=64, hop=10, n_mels=8)
CONFORMER = ConformerConfig(dim=16, heads=2, layers=2, ff=24, kernel_size=3)
TRANSFORMER = TransformerConfig(
    dim=16, heads=2, kv_heads=2, layers=2, ff=24, bias=True, causal=False
)
CONV = ConvFrontConfig(dims=(6, 8), kernels=(10, 4), strides=(5, 4))
CONFIGS = {
    "mel": SemanticConfig(
        sample_rate=2000, front=MelFrontConfig(mel=MEL, stack=4, channels=3), trunk=CONFORMER
    ),
    "residual": SemanticConfig(
        sample_rate=2000,
        front=MelFrontConfig(mel=MEL, stack=2, channels=3, residual=True),
        trunk=dataclasses.replace(CONFORMER, positions="rotary", final_norm=True, scan=False),
    ),
    "stack": SemanticConfig(
        sample_rate=2000,
        front=MelFrontConfig(mel=MEL, stack=2),
        trunk=dataclasses.replace(CONFORMER, positions="none", conv_norm="batch"),
        feature_norm=True,
    ),
    "conv": SemanticConfig(
        sample_rate=2000,
        front=CONV,
        trunk=dataclasses.replace(TRANSFORMER, norm_position="post"),
        feature_norm=True,
        position_kernel=4,
        position_groups=2,
    ),
    "conv_large": SemanticConfig(
        sample_rate=2000,
        front=dataclasses.replace(CONV, norm="layer", bias=True, normalize=True),
        trunk=TRANSFORMER,
        position_kernel=3,
        position_groups=4,
    ),
}


def audio(batch, samples, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, samples, channels)).astype(np.float32)


@pytest.fixture(scope="module", params=["residual", "stack", "conv"])
def model(request):
    config = CONFIGS[request.param]
    variables = jax.jit(Encoder(config).init)(jax.random.key(0), audio(1, 400))
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + 0.1 * rng.random(x.shape, np.float32), variables)
    return config, noisy


def test_batch_mates_change_nothing(model):
    config, variables = model
    x = audio(3, 800)
    mask = jnp.zeros((3, config.frames(800)), bool).at[:, 2:4].set(True)
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def run(rows):
        x_rows = jnp.asarray(x)[rows]
        return Encoder(config).apply(variables, x_rows, mask[rows], keys[rows], train=True)

    together = run(jnp.arange(3))
    np.testing.assert_allclose(together[1], run(jnp.asarray([1, 1, 1]))[2], atol=1e-5)
    np.testing.assert_allclose(together[::-1], run(jnp.asarray([2, 1, 0])), atol=1e-5)


def test_hidden_states_are_in_order(model):
    """State n does not depend on the layers after n; the last one is the output."""
    config, variables = model
    x = audio(1, 600, channels=2)
    encoder = Encoder(config)
    states, last = jax.jit(
        lambda v: (encoder.apply(v, x, method="hidden_states"), encoder.apply(v, x))
    )(variables)
    assert states.shape == (3, 1, config.frames(600), 16)
    np.testing.assert_allclose(states[-1], last, atol=1e-5)
    frozen = FrozenSemantic.from_trained(config, variables["params"], variables)
    for layer in range(3):
        changed = jax.tree.map(lambda v: v, frozen.variables)
        for i in range(layer, 2):
            block = changed["params"]["trunk"][f"layers_{i}"]
            changed["params"]["trunk"][f"layers_{i}"] = jax.tree.map(lambda v: 0.5 * v, block)
        other = dataclasses.replace(frozen, variables=changed)
        np.testing.assert_allclose(other.features(x, layer), states[layer], atol=1e-5)
        if layer < 2:
            assert not np.allclose(other.features(x, 2), states[2], atol=1e-2)
    np.testing.assert_array_equal(frozen.features(x, -1), frozen.features(x, 2))


def test_masked_frames_are_hidden(model):
    """What lies under the mask does not reach the output: embedding for one fill, noise for the
    other (but for the windows that reach over)."""
    config, variables = model
    x = audio(1, 800)
    frames = config.frames(800)
    mask = jnp.ones((1, frames), bool)
    run = jax.jit(lambda x: Encoder(config).apply(variables, x, mask))
    np.testing.assert_allclose(run(x), run(0.3 * x), atol=1e-5)
    noise = jax.jit(lambda x, seed: Encoder(config).apply(variables, x, mask, seed))
    one, other = (jax.random.split(jax.random.key(seed), 1) for seed in (0, 1))
    if not isinstance(config.front, ConvFrontConfig):
        np.testing.assert_allclose(noise(x, one), noise(0.3 * x, one), atol=1e-5)
    assert not np.allclose(noise(x, one), noise(x, other), atol=1e-3)


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(sorted(CONFIGS)), st.integers(1, 2000))
def test_frames_and_samples(name, samples):
    config = CONFIGS[name]
    frames = config.frames(samples)
    if frames:
        assert config.samples(frames) <= samples < config.samples(frames + 1)
        out = jax.eval_shape(
            lambda x: Encoder(config).init_with_output(jax.random.key(0), x)[0],
            jax.ShapeDtypeStruct((1, samples, 1), jnp.float32),
        )
        assert out.shape == (1, frames, 16)
    else:
        assert samples < config.samples(1)


def test_features_long(model, monkeypatch):
    config, variables = model
    monkeypatch.setattr(sample, "WINDOW_SECONDS", 40 / config.frame_rate)
    monkeypatch.setattr(sample, "MARGIN_SECONDS", 5 / config.frame_rate)
    frozen = FrozenSemantic.from_trained(config, variables["params"], variables)
    rate = config.frame_rate
    fits = audio(1, config.samples(40))[0]
    whole = frozen.features(fits[None], 1)[0]
    np.testing.assert_allclose(frozen.features_long(fits, 1, rate), whole, atol=1e-5)
    halves = frozen.features_long(fits[: config.samples(39)], 1, rate / 2)
    short = frozen.features(fits[None, : config.samples(39)], 1)[0]
    assert halves.shape == (20, 16)
    np.testing.assert_allclose(halves[:-1], (short[:-1:2] + short[1::2]) / 2, atol=1e-5)
    np.testing.assert_allclose(halves[-1], short[-1], atol=1e-5)

    frames = 40 + 5 * 30 + 17
    recording = audio(1, config.samples(frames) + 3, channels=2)[0]
    features = frozen.features_long(recording, 1, rate)
    assert features.shape == (frames, 16)
    starts = [*range(0, 180, 30), frames - 40]
    hop, samples = config.front.hop, config.samples(40)
    for i, start in enumerate(starts):
        window = recording[None, start * hop : start * hop + samples].mean(-1, keepdims=True)
        expected = frozen.features(window, 1)[0]
        first = 5 if start else 0
        last = starts[i + 1] + 5 - start if i + 1 < len(starts) else 40
        np.testing.assert_allclose(
            features[start + first : start + last], expected[first:last], atol=1e-5
        )


def test_features_long_of_a_local_layer_has_no_seams(monkeypatch):
    """Away from the edges of the recording, the trunk's input sees little more than its frame."""
    config = CONFIGS["stack"]
    variables = jax.jit(Encoder(config).init)(jax.random.key(0), audio(1, 400))
    monkeypatch.setattr(sample, "WINDOW_SECONDS", 40 / config.frame_rate)
    monkeypatch.setattr(sample, "MARGIN_SECONDS", 5 / config.frame_rate)
    frozen = FrozenSemantic.from_trained(config, variables["params"], variables)
    recording = audio(1, 5003)[0]
    whole = frozen.features(recording[None], 0)[0]
    ours = frozen.features_long(recording, 0, config.frame_rate)
    # The last windows of the spectrogram meet samples beyond the last frame.
    np.testing.assert_allclose(ours[:-2], whole[:-2], atol=1e-5)


def test_later_layers_are_not_computed():
    config = CONFIGS["mel"]
    variables = jax.jit(Encoder(config).init)(jax.random.key(0), audio(1, 400))
    frozen = FrozenSemantic.from_trained(config, variables["params"], variables)
    flops = [
        sample._features.lower(frozen, jnp.zeros((1, 4000, 1)), layer).compile().cost_analysis()
        for layer in range(3)
    ]
    steps = np.diff([cost["flops"] for cost in flops])
    assert steps.min() > 0.7 * steps.max()


def test_bad_requests_are_refused(model):
    config, variables = model
    frozen = FrozenSemantic.from_trained(config, variables["params"], variables)
    with pytest.raises(UserError, match="layer is 3, expected 0 to 2"):
        frozen.features(audio(1, 400), 3)
    with pytest.raises(UserError, match="expected at least"):
        frozen.features(audio(1, 5), 0)
    with pytest.raises(UserError, match="expected a divisor of the frame rate"):
        frozen.features_long(audio(1, 400)[0], 0, 7.3)


def test_scanned_parameters_serve_the_frozen_encoder(model):
    config, variables = model
    params = {"encoder": variables["params"], "heads": {}}
    others = (
        {"batch_stats": {"encoder": variables["batch_stats"]}} if "batch_stats" in variables else {}
    )
    frozen = FrozenSemantic.from_trained(config, params, {**others, "targets": {}})
    x = audio(2, 500)
    expected = jax.jit(Encoder(config).apply)(variables, x)
    np.testing.assert_allclose(frozen.features(x, 2), expected, atol=1e-5)
    split = unstack_layers(variables["params"])
    assert "layers_1" in split["trunk"]
    if config.trunk.scan:
        jax.tree.map(np.testing.assert_array_equal, stack_layers(split), variables["params"])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(front=dict(kind="wave")), "model.front.kind is 'wave'"),
        (dict(trunk=dict(kind="conformer", dim=4)), "model.trunk.heads: missing"),
        (dict(colour=1), "model.colour: unknown field"),
        (dict(front=dict(kind="mel", mel=dict(bins=3))), "model.front.mel.bins: unknown field"),
        (dict(front=dict(kind="mel", stack=3, channels=2)), "model.front.stack is 3"),
        (dict(front=dict(kind="conv", norm="batch")), "model.front.norm is 'batch'"),
        (dict(front=dict(kind="conv", dims=(1,))), "differ in length"),
        (
            dict(trunk=dict(kind="conformer", dim=5, heads=2, layers=1, ff=4)),
            "model.trunk.heads is 2",
        ),
        (
            dict(trunk=dict(kind="conformer", dim=4, heads=2, layers=1, ff=4, positions="x")),
            "model.trunk.positions is 'x'",
        ),
        (dict(position_kernel=4, position_groups=3), "model.position_groups is 3"),
    ],
)
def test_bad_configs_are_refused(change, message):
    config = dict(
        sample_rate=16000,
        front=dict(kind="mel", stack=2),
        trunk=dict(kind="transformer", dim=4, heads=2, layers=1, ff=8),
    )
    assert SemanticConfig.from_config(config).frame_rate == 50
    with pytest.raises(UserError) as error:
        SemanticConfig.from_config(config | change)
    assert message in str(error.value)


def test_heads_read_the_encoder():
    config = CONFIGS["mel"]
    for head in ("linear", "cosine"):
        wanted = TargetConfig(
            kind="codes", codebooks=3, codebook_size=7, head=head, head_dim=5, cqt_bins=11
        )
        model = Pretraining(config, wanted)
        outputs, variables = jax.eval_shape(
            model.init_with_output, jax.random.key(0), audio(2, 400)
        )
        assert [x.shape for x in outputs] == [(2, 10, 3, 7), (2, 10, 11)]
        extra = {"linear": 16 * 21 + 21, "cosine": 16 * 15 + 15 + 3 * 7 * 5}[head]
        assert tree.size(variables["params"]["heads"]) == extra + 16 * 11 + 11


def test_cosine_head_is_a_cosine_over_the_temperature():
    wanted = TargetConfig(kind="codes", codebooks=2, codebook_size=3, head="cosine", head_dim=5)
    x = jax.random.normal(jax.random.key(0), (1, 4, 6))
    (logits, cqt), variables = Heads(wanted).init_with_output(jax.random.key(1), x)
    assert cqt is None
    query = np.einsum("bfd,dkp->bfkp", x, variables["params"]["codes"]["kernel"])
    table = np.asarray(variables["params"]["embedding"])
    query, table = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (query, table))
    np.testing.assert_allclose(logits, np.einsum("bfkp,kvp->bfkv", query, table) / 0.1, atol=1e-4)
