"""Towers: published sizes, independence of padding and of batch mates, patchout, layouts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen import tree
from mgen.errors import UserError
from mgen.joint import htsat, vit
from mgen.joint.htsat import HTSAT, HTSATConfig
from mgen.joint.resnet import ResNet, ResNetConfig
from mgen.joint.text import TextConfig, TextTower
from mgen.joint.towers import Embedded
from mgen.joint.vit import ViT, ViTConfig

T5_FIELDS = dict(
    norm="rms",
    norm_epsilon=1e-6,
    norm_position="pre",
    bias=False,
    positions="relative",
    token_types=0,
    embedding_norm=False,
    scale=1.0,
    activation="relu",
    pooling="mean",
)
TINY = dict(vocab_size=11, dim=8, layers=2, heads=2, ff=12, max_length=12)
TEXTS = {
    "bert": TextConfig(**TINY),
    "roberta": TextConfig(**TINY, position_offset=2, token_types=1, pooling="cls"),
    "t5": TextConfig(**{**TINY, **T5_FIELDS}, gated=True, head_dim=6, relative_buckets=8),
    "mean": TextConfig(**TINY, pooling="mean", positions="none", norm_position="pre"),
}
PATCHED = dict(dim=8, layers=2, heads=2, ff=12)
AST = ViTConfig(frames=22, mels=14, patch=(6, 4), stride=(4, 2), **PATCHED)
PLAIN = ViTConfig(
    frames=22, mels=14, patch=(5, 7), stride=(5, 7), class_tokens=0, pooling="mean", **PATCHED
)
SWIN = HTSATConfig(mels=8, size=16, patch=2, window=3, dim=4, depths=(2, 1), heads=(1, 2))
AUDIOS = {
    "ast": (ViT(AST), (22, 14), 8),
    "plain": (ViT(PLAIN), (22, 14), 8),
    "resnet": (ResNet(ResNetConfig(blocks=(1, 1), width=4, groups=2)), (22, 14), 32),
    "htsat": (HTSAT(SWIN), (29, 8), 8),
}
LENGTH = 9
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 11, (3, LENGTH)), jnp.int32)


def build(tower, *inputs):
    """The tower and random parameters, without compiling its initialisation."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        offset = float("scale" in jax.tree_util.keystr(path))
        return jnp.asarray(offset + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    shapes = jax.eval_shape(tower.init, jax.random.key(0), *inputs)
    return tower, jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def text_variables(name):
    return build(TextTower(TEXTS[name]), IDS)


@functools.cache
def audio_variables(name):
    tower, shape, _ = AUDIOS[name]
    return build(tower, jnp.zeros((1, *shape)))


@functools.cache
def text_tower(name):
    tower, variables = text_variables(name)
    return jax.jit(functools.partial(tower.apply, variables))


@functools.cache
def audio_tower(name):
    tower, variables = audio_variables(name)
    return jax.jit(functools.partial(tower.apply, variables))


def mels(shape, batch=3):
    return jax.random.normal(jax.random.key(2), (batch, *shape))


@pytest.mark.parametrize(
    "module, count",
    [
        # bert-base-uncased with its pooler; the encoder of t5-base.
        (TextTower(TextConfig(vocab_size=30522)), 109_482_240),
        (TextTower(TextConfig(vocab_size=32128, head_dim=64, **T5_FIELDS)), 109_628_544),
        # RoBERTa-base with its pooler.
        (
            TextTower(
                TextConfig(vocab_size=50265, position_offset=2, token_types=1, norm_epsilon=1e-5)
            ),
            124_645_632,
        ),
    ],
)
def test_published_sizes_of_text_towers(module, count):
    ids = jnp.zeros((1, 8), jnp.int32)
    assert tree.size(jax.eval_shape(module.init, jax.random.key(0), ids)) == count


@pytest.mark.parametrize(
    "module, shape, count, dim",
    [
        # 12 blocks of 7,087,872; 1,214 positions, 2 tokens, 256-value patches, final norm.
        (
            ViT(ViTConfig()),
            (1024, 128),
            12 * 7_087_872 + 768 * (1214 + 2 + 256 + 1 + 2),
            768,
        ),
        # The trunk with three input channels and batch norm has 23,508,032.
        (ResNet(ResNetConfig()), (1001, 128), 23_508_032 - 2 * 49 * 64, 2048),
        # Audio tower of laion/clap-htsat-unfused.
        (HTSAT(HTSATConfig()), (1001, 64), 27_534_488, 768),
    ],
)
def test_published_sizes_of_audio_towers(module, shape, count, dim):
    out, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), jnp.zeros((2, *shape))
    )
    assert tree.size(variables) == count
    assert out.pooled.shape == (2, dim)


@pytest.mark.parametrize("name", TEXTS)
def test_padding_changes_no_text(name):
    """Neither what stands in it nor how much there is of it; also for the neighbours."""
    tower = text_tower(name)
    lengths = jnp.asarray([LENGTH, 5, 1])
    mask = jnp.arange(LENGTH)[None] < lengths[:, None]
    one = tower(IDS, mask)
    other = tower(jnp.where(mask, IDS, 0), mask)
    np.testing.assert_allclose(one.pooled, other.pooled, atol=1e-6)
    np.testing.assert_allclose(one.tokens[mask], other.tokens[mask], atol=1e-6)
    short = tower(IDS[1:2, :5], None)
    np.testing.assert_allclose(one.pooled[1], short.pooled[0], atol=1e-5)
    assert not np.allclose(tower(IDS, None).pooled[1], short.pooled[0], atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_text_depends_on_its_tokens_alone(data):
    """Any text in any company, under any mask that starts with its tokens."""
    tower = text_tower("bert")
    ids = st.lists(st.integers(0, 10), min_size=LENGTH, max_size=LENGTH)
    text, length = data.draw(ids), data.draw(st.integers(1, LENGTH))
    embedded = []
    for _ in range(2):
        tail = data.draw(ids)[length:]
        batch = jnp.asarray([data.draw(ids), text[:length] + tail, data.draw(ids)], jnp.int32)
        lengths = jnp.asarray([data.draw(st.integers(1, LENGTH)), length, LENGTH])
        mask = jnp.arange(LENGTH)[None] < lengths[:, None]
        embedded.append(tower(batch, mask).pooled[1])
    np.testing.assert_allclose(*embedded, atol=1e-6)


@pytest.mark.parametrize("name", AUDIOS)
def test_audio_depends_on_no_batch_mate(name):
    _, shape, dim = AUDIOS[name]
    tower, x = audio_tower(name), mels(shape)
    out = tower(x)
    assert isinstance(out, Embedded) and out.pooled.shape == (3, dim)
    changed = tower(x.at[0].add(1.0))
    np.testing.assert_allclose(out.pooled[1:], changed.pooled[1:], atol=1e-6)
    assert not np.allclose(out.pooled[0], changed.pooled[0], atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "t5", "ast", "resnet", "htsat"])
def test_every_parameter_moves_the_embedding(name):
    if name in TEXTS:
        inputs, (tower, variables) = (IDS, IDS > 3), text_variables(name)
    else:
        inputs, (tower, variables) = (mels(AUDIOS[name][1]),), audio_variables(name)
    weights = jax.random.normal(jax.random.key(3), (64,))

    def loss(variables):
        pooled = tower.apply(variables, *inputs).pooled
        return jnp.sum(pooled * weights[None, : pooled.shape[1]])

    gradients = jax.jit(jax.grad(loss))(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        # A bias on keys moves all scores of a query alike.
        if "key" not in jax.tree_util.keystr(path) or "bias" not in jax.tree_util.keystr(path):
            assert np.all(np.isfinite(leaf)) and np.any(np.abs(leaf) > 1e-6), path


@pytest.mark.parametrize("name", ["bert", *AUDIOS])
def test_compute_dtype_leaves_parameters_and_embedding_float32(name):
    if name in TEXTS:
        tower, inputs = TextTower(TEXTS[name]), IDS
    else:
        tower, shape, _ = AUDIOS[name]
        inputs = mels(shape)
    tower = tower.clone(config=dataclasses.replace(tower.config, dtype="bfloat16"))
    out, variables = jax.eval_shape(tower.init_with_output, jax.random.key(0), inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert out.tokens.dtype == jnp.bfloat16 and out.pooled.dtype == jnp.float32


def test_mean_pooling_counts_tokens_alone():
    mask = jnp.arange(LENGTH)[None] < jnp.asarray([[LENGTH], [4], [1]])
    out = text_tower("mean")(IDS, mask)
    for i, length in enumerate((LENGTH, 4, 1)):
        np.testing.assert_allclose(out.pooled[i], out.tokens[i, :length].mean(0), atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_hidden_states_end_with_the_tokens(name):
    tower, variables = text_variables(name)
    states = functools.partial(tower.apply, variables, method="hidden_states")
    hidden = jax.jit(states)(IDS, IDS > 3)
    assert hidden.shape == (3, 3, LENGTH, 8)
    embedded = tower.apply(variables, IDS, method="embed")
    np.testing.assert_allclose(hidden[0], embedded, atol=1e-6)
    np.testing.assert_allclose(hidden[-1], text_tower(name)(IDS, IDS > 3).tokens, atol=1e-6)


def test_patches_are_those_of_a_convolution():
    x = mels((22, 14))
    kernel = jax.random.normal(jax.random.key(4), (6, 4, 1, 5))
    expected = jax.lax.conv_general_dilated(
        x[..., None], kernel, (4, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    ours = vit.cut_patches(x, (6, 4), (4, 2)) @ kernel.reshape(-1, 5)[None]
    assert expected.shape[1:3] == AST.grid
    expected = expected.transpose(0, 2, 1, 3).reshape(3, -1, 5)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_patchout_only_in_training():
    x, (tower, variables) = mels((22, 14)), audio_variables("ast")
    plain = audio_tower("ast")(x)
    dropping = tower.clone(config=dataclasses.replace(AST, patchout=0.5))

    def train(tower):
        run = functools.partial(tower.apply, train=True, rngs={"patchout": jax.random.key(5)})
        return jax.jit(run)(variables, x)

    np.testing.assert_allclose(train(tower).pooled, plain.pooled, atol=1e-6)
    quiet = jax.jit(dropping.apply)(variables, x)
    np.testing.assert_allclose(quiet.pooled, plain.pooled, atol=1e-6)
    out, patches = train(dropping), AST.grid[0] * AST.grid[1]
    assert plain.tokens.shape[1] == quiet.tokens.shape[1] == patches + 2
    assert out.tokens.shape[1] == patches - patches // 2 + 2
    assert not np.allclose(out.pooled, plain.pooled, atol=1e-3)


keep_patches = jax.jit(vit.keep_patches, static_argnums=(0, 2))


@pytest.mark.parametrize("rates", [(0.3, 0.0, 0.0), (0.0, 0.5, 0.4), (0.5, 0.3, 0.2)])
def test_kept_patches(rates):
    """Right count, ascending, whole rows and columns, an example's own whatever the batch."""
    alone, columns, rows = rates
    config = dataclasses.replace(AST, patchout=alone, patchout_frames=columns, patchout_mels=rows)
    time, bins = (n - int(rate * n) for n, rate in zip(AST.grid, (columns, rows), strict=True))
    for seed in range(10):
        key = jax.random.key(seed)
        kept = np.asarray(keep_patches(config, key, 4))
        np.testing.assert_array_equal(kept[:2], keep_patches(config, key, 2))
        assert kept.shape[1] == time * bins - int(alone * time * bins)
        assert np.all(np.diff(kept, axis=1) > 0)
        assert kept.min() >= 0 and kept.max() < AST.grid[0] * AST.grid[1]
        for example in kept:
            assert len(set(example % AST.grid[0])) <= time
            assert len(set(example // AST.grid[0])) <= bins
        assert len({tuple(example) for example in kept}) > 1


def test_spectrogram_is_folded_in_time():
    """Row r, column c of the image: bin r % mels, frame (r // mels) * size + c."""
    frame, mel = np.meshgrid(np.arange(SWIN.frames), np.arange(8), indexing="ij")
    image = htsat.fold(SWIN, jnp.asarray(frame * 10.0 + mel)[None])[0]
    row, column = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    np.testing.assert_array_equal(image, (row // 8 * 16 + column) * 10.0 + row % 8)


def test_stretching_keeps_constants_and_ends():
    matrix = htsat.bicubic(29, 32)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-5)
    signal = np.random.default_rng(0).normal(size=29)
    np.testing.assert_allclose((matrix @ signal)[[0, -1]], signal[[0, -1]], atol=1e-5)
    np.testing.assert_array_equal(htsat.bicubic(29, 29), np.eye(29))


def test_windows_that_wrap_are_masked():
    """Brute force: after rolling, neighbours in a window attend iff they were no further apart than
    a window before."""
    size, window, shift = 9, 3, 1
    place = np.roll(np.stack(np.indices((size, size)), -1), (-shift, -shift), (0, 1))
    windows = np.asarray(htsat.cut_windows(jnp.asarray(place)[None], window))[0]
    far = np.abs(windows[:, :, None] - windows[:, None, :]).max(-1) >= window
    mask = np.asarray(htsat.same_region((size, size), window, shift))
    np.testing.assert_array_equal(mask, ~far)
    x = jnp.asarray(place)[None]
    joined = htsat.join_windows(htsat.cut_windows(x, window), (size, size), window)
    np.testing.assert_array_equal(joined, x)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: TextConfig(**TINY, pooling="max"), "model.text.pooling is 'max'"),
        (lambda: TextConfig(**{**TINY, "heads": 3}), "model.text.heads is 3"),
        (lambda: ViTConfig(patchout=1.0), "model.audio.patchout is 1.0"),
        (lambda: ViTConfig(class_tokens=0), "model.audio.class_tokens is 0"),
        (lambda: ViTConfig(frames=10), "model.audio.patch is (16, 16)"),
        (lambda: ResNetConfig(width=40), "model.audio.groups is 32"),
        (lambda: HTSATConfig(depths=(2, 2)), "model.audio.heads has 4 stages"),
        (lambda: HTSATConfig(mels=48), "model.audio.mels is 48"),
        (lambda: HTSATConfig(size=200), "model.audio.size is 200"),
        (lambda: HTSATConfig(window=9), "model.audio.window is 9"),
        (lambda: HTSATConfig(dtype="float16"), "model.audio.dtype is 'float16'"),
        (lambda: audio_tower("ast")(jnp.zeros((1, 21, 14))), "has (frames, mels) (21, 14)"),
        (lambda: audio_tower("htsat")(jnp.zeros((1, 33, 8))), "at most 32 frames of 8 mels"),
        (
            lambda: text_tower("bert")(jnp.zeros((1, 13), jnp.int32)),
            "model.text.max_length is 12, expected at least the 13 positions",
        ),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(UserError) as error:
        build()
    assert message in str(error.value)
