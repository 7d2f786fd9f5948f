"""The Transformer over tracks: sizes, laws of its inputs, its start, precision and memory
settings."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.nn.transformer import stack_layers, unstack_layers
from mgen.stems import condition as conditions
from mgen.stems.condition import StemCondition
from mgen.stems.config import DiTConfig
from mgen.stems.dit import DiT, Modulation

SMALL = DiTConfig(
    stems=3,
    latent_dim=5,
    categories=6,
    dim=16,
    heads=2,
    layers=2,
    ff=24,
    global_frames=2,
    text_width=3,
    chords=7,
    beats=True,
    melody=True,
)
PLAIN = DiTConfig(stems=3, latent_dim=5, categories=6, dim=16, heads=2, layers=2, ff=24)
B, S, F = 2, 3, 6
LEVELS = np.asarray([[-1.5, 0.2, -0.7], [0.4, -2.0, 0.0]], np.float32)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, x, noise, condition):
    return DiT(config).apply({"params": params}, x, noise, condition)


@functools.partial(jax.jit, static_argnums=0)
def gradients(config, params, x, noise, condition):
    def loss(params):
        return jnp.mean(jnp.square(DiT(config).apply({"params": params}, x, noise, condition)))

    return jax.grad(loss)(params)


def shapes_of(config, frames=F):
    x = jax.ShapeDtypeStruct((1, config.stems, frames, config.latent_dim), jnp.float32)
    noise = jax.ShapeDtypeStruct((1,), jnp.float32)
    out, variables = jax.eval_shape(DiT(config).init_with_output, jax.random.key(0), x, noise)
    assert out.shape == x.shape and out.dtype == jnp.float32
    return variables["params"]


def random_params(config):
    """Of the size that keeps a layer's level, without a zero among them."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        scale = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes_of(config))


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@pytest.fixture(scope="module")
def inputs():
    """Latents, and a condition of everything; example 1 lacks track 2."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    condition = StemCondition(
        categories=jnp.asarray([[0, 4, 2], [5, 1, 3]]),
        present=jnp.asarray([[True, True, True], [True, True, False]]),
        text=normal(B, 4, 3),
        text_mask=jnp.asarray([[True, True, False, False], [True, True, True, False]]),
        chords=jnp.asarray(rng.integers(0, 8, (B, F))),
        beats=normal(B, F, 2),
        beats_mask=jnp.asarray(rng.random((B, F)) < 0.7),
        melody=normal(B, F, 12),
        melody_mask=jnp.asarray(rng.random((B, F)) < 0.7),
    )
    x = normal(B, S, F, 5)
    return x, conditions.complete(SMALL, condition, B, S, F)


@pytest.mark.parametrize("order", itertools.permutations(range(S)))
def test_tracks_stand_in_no_order(params, inputs, order):
    x, condition = inputs
    order = np.asarray(order)
    expected = run(SMALL, params, x, LEVELS, condition)[:, order]
    moved = dataclasses.replace(
        condition,
        categories=condition.categories[:, order],
        present=condition.present[:, order],
    )
    out = run(SMALL, params, x[:, order], LEVELS[:, order], moved)
    # Sums over tracks run in another order.
    np.testing.assert_allclose(out, expected, atol=1e-4)
    if tuple(order) != tuple(range(S)):
        assert np.abs(expected - run(SMALL, params, x, LEVELS, condition)).max() > 1e-1


def test_an_absent_track_is_silent_and_unheard(params, inputs):
    x, condition = inputs
    before = np.asarray(run(SMALL, params, x, LEVELS, condition))
    np.testing.assert_array_equal(before[1, 2], 0)
    assert np.all(np.abs(before[condition.present]).max(axis=(1, 2)) > 1e-2)
    levels = LEVELS.copy()
    levels[1, 2] = 3.0
    other = dataclasses.replace(condition, categories=condition.categories.at[1, 2].set(0))
    after = run(SMALL, params, x.at[1, 2].multiply(-9.0), levels, other)
    np.testing.assert_array_equal(after, before)
    # Nor does its place matter.
    alone = jax.tree.map(lambda leaf: leaf[1:], condition)
    alone = dataclasses.replace(
        alone, categories=alone.categories[:, :2], present=alone.present[:, :2]
    )
    out = run(SMALL, params, x[1:, :2], LEVELS[1:, :2], alone)
    np.testing.assert_allclose(out[0], before[1, :2], atol=1e-4)


def test_a_present_track_is_heard_everywhere(params, inputs):
    x, condition = inputs
    before = np.asarray(run(SMALL, params, x, LEVELS, condition))
    after = run(SMALL, params, x.at[0, 1, 3].add(1.0), LEVELS, condition)
    change = np.abs(after - before).max(axis=-1)
    assert np.all(change[0] > 1e-4)
    np.testing.assert_allclose(change[1], 0, atol=1e-6)


def test_an_example_is_its_own(params, inputs):
    x, condition = inputs
    both = run(SMALL, params, x, LEVELS, condition)
    turned = jax.tree.map(lambda leaf: leaf[::-1], condition)
    out = run(SMALL, params, x[::-1], LEVELS[::-1], turned)
    # Float32 sums may run in another order for another row.
    np.testing.assert_allclose(out[::-1], both, atol=1e-4)
    out = run(SMALL, params, x.at[1].multiply(-2.0), LEVELS, condition)
    np.testing.assert_allclose(out[0], both[0], atol=1e-6)


def test_equal_levels_are_one_level(params, inputs):
    x, condition = inputs
    one = run(SMALL, params, x, LEVELS[:, 0], condition)
    np.testing.assert_array_equal(run(SMALL, params, x, LEVELS[:, :1].repeat(S, 1), condition), one)
    assert np.abs(run(SMALL, params, x, LEVELS, condition) - one).max() > 1e-2


def test_modulation_is_of_the_tracks_own_level_and_category():
    module = Modulation(SMALL, 4)
    categories = np.asarray([[0, 4, 2], [0, 4, 2]])
    params = module.init(jax.random.key(0), LEVELS, categories)["params"]
    np.testing.assert_array_equal(params["modulation"]["kernel"], 0)
    kernel = jax.random.normal(jax.random.key(1), params["modulation"]["kernel"].shape)
    params = params | {"modulation": params["modulation"] | {"kernel": kernel}}
    before = np.asarray(module.apply({"params": params}, LEVELS, categories))
    assert before.shape == (B, S, 4, 16)
    levels, kinds = LEVELS.copy(), categories.copy()
    levels[0, 1] += 1.0
    kinds[1, 0] = 3
    after = module.apply({"params": params}, levels, kinds)
    changed = np.any(after != before, axis=(2, 3))
    np.testing.assert_array_equal(changed, [[False, True, False], [True, False, False]])


def test_an_untrained_network_sees_single_frames_and_says_nothing(inputs):
    """Gates of 0 make every block the identity, whatever it is told, and the output layer is 0."""
    x, condition = inputs
    # Of XLA's own generator, which compiles in a fraction of the time.
    key = jax.random.key(0, impl="unsafe_rbg")
    start = jax.jit(DiT(SMALL).init)(key, x, LEVELS, condition)["params"]
    np.testing.assert_array_equal(run(SMALL, start, x, LEVELS, condition), 0)
    rng = np.random.default_rng(2)
    kernel = rng.standard_normal(start["out"]["kernel"].shape).astype(np.float32)
    heard = start | {"out": start["out"] | {"kernel": kernel}}
    out = run(SMALL, heard, x, LEVELS, condition)
    table = start["controls"]
    h = np.asarray(x) @ start["latents"]["kernel"]
    frames = np.asarray(table["chords"]["embedding"])[condition.chords]
    for name in ("beats", "melody"):
        known = getattr(condition, name) @ table[name]["kernel"]
        mask = getattr(condition, f"{name}_mask")[..., None]
        frames = frames + np.where(mask, known, table[f"{name}_unknown"])
    h = h + frames[:, None]
    h = h - h.mean(axis=-1, keepdims=True)
    expected = h / np.sqrt(np.square(h).mean(axis=-1, keepdims=True) + 1e-6) @ kernel
    expected = np.where(condition.present[..., None, None], expected, 0)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    # And yet it learns: the gates of all sub-layers.
    gates = gradients(SMALL, heard, x, LEVELS, condition)["layers"]["modulation"]
    assert np.all(np.abs(gates[:, 2::3]).max(axis=-1) > 1e-6)


def test_unknown_is_absent(params, inputs):
    x, condition = inputs
    tracks = StemCondition(categories=condition.categories, present=condition.present)
    expected = run(SMALL, params, x, LEVELS, tracks)
    nothing = conditions.absent(SMALL, condition)
    assert jax.tree.structure(nothing) == jax.tree.structure(condition)
    np.testing.assert_allclose(run(SMALL, params, x, LEVELS, nothing), expected, atol=1e-5)
    assert np.abs(run(SMALL, params, x, LEVELS, condition) - expected).max() > 1e-1
    # Unknown is no silence, no absence of a beat and no chord.
    silent = nothing.replace(beats=jnp.zeros((B, F, 2)), beats_mask=jnp.ones((B, F), bool))
    assert np.abs(run(SMALL, params, x, LEVELS, silent) - expected).max() > 1e-2


@pytest.mark.parametrize("name", ["text", "chords", "beats", "melody"])
def test_every_input_counts_where_it_is_known(params, inputs, name):
    x, condition = inputs
    known = condition.chords >= 0 if name == "chords" else getattr(condition, f"{name}_mask")
    value = getattr(condition, name)
    before = run(SMALL, params, x, LEVELS, condition)

    def changed(where):
        where = where.reshape(*where.shape, *(1,) * (value.ndim - 2))
        other = jnp.where(where, (value + 1) % 7, value)
        return np.abs(run(SMALL, params, x, LEVELS, condition.replace(**{name: other})) - before)

    assert np.all(changed(known).max(axis=(1, 2, 3)) > 1e-3)
    np.testing.assert_array_equal(changed(~known), 0)


def test_what_is_left_out_is_filled_in(params, inputs):
    """Tracks of the first categories, all there."""
    x, _ = inputs
    tracks = StemCondition(
        categories=jnp.tile(jnp.arange(S), (B, 1)), present=jnp.ones((B, S), bool)
    )
    expected = run(SMALL, params, x, LEVELS, tracks)
    np.testing.assert_allclose(run(SMALL, params, x, LEVELS, None), expected, atol=1e-5)


def test_a_plain_network_has_no_such_inputs():
    names = set(shapes_of(PLAIN)["layers"])
    assert names == {"time", "tracks", "ff_in", "ff_gate", "ff_out", "modulation"}
    for field in ("text", "chords", "beats", "melody"):
        with pytest.raises(UserError, match=f"condition.{field}: this model has no such input"):
            given = StemCondition(**{field: jnp.zeros((1, 1))})
            conditions.complete(PLAIN, given, 1, 3, 1)


def test_scanned_layers_are_layers(params, inputs):
    x, condition = inputs
    unrolled = dataclasses.replace(SMALL, scan=False)
    split = unstack_layers(params)
    assert jax.tree.structure(split) == jax.tree.structure(shapes_of(unrolled))
    expected = run(SMALL, params, x, LEVELS, condition)
    # Float32 sums in another order.
    np.testing.assert_allclose(run(unrolled, split, x, LEVELS, condition), expected, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(split), params)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(inputs, remat):
    x, params, condition = inputs[0], random_params(PLAIN), None
    again = dataclasses.replace(PLAIN, remat=remat)
    assert jax.tree.structure(shapes_of(again)) == jax.tree.structure(params)
    plain = gradients(PLAIN, params, x, LEVELS, condition)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(plain))
    found = gradients(again, params, x, LEVELS, condition)
    # What is computed anew may be fused otherwise.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), found, plain)
    trace = jax.make_jaxpr(gradients, static_argnums=0)
    assert "remat" in str(trace(again, params, x, LEVELS, condition))


def test_bfloat16_is_close_and_keeps_float32_parameters(params, inputs):
    x, condition = inputs
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(config))} == {jnp.dtype("float32")}
    expected = np.asarray(run(SMALL, params, x, LEVELS, condition))
    error = run(config, params, x, LEVELS, condition) - expected
    # Roundings of 2^-9 in each of some 30 layers, of independent sign, through gates of order 1.
    assert 1e-4 < np.std(error) / np.std(expected) < 3 * 2**-9 * 30**0.5


def test_conditions_are_dropped_at_their_rates():
    """Four standard errors of 2000 examples."""
    batch = 2000
    keys = jax.random.split(jax.random.key(0), batch)
    given = conditions.complete(
        SMALL,
        StemCondition(
            text=jnp.ones((batch, 1, 3)),
            chords=jnp.zeros((batch, 2), jnp.int32),
            beats=jnp.ones((batch, 2, 2)),
            melody=jnp.ones((batch, 2, 12)),
        ),
        batch,
        1,
        2,
    )
    left = conditions.drop(SMALL, keys, given, 0.2, 0.3)
    kept = np.stack(
        [
            left.text_mask[:, 0],
            left.chords[:, 0] == 0,
            left.beats_mask[:, 0],
            left.melody_mask[:, 0],
        ]
    )
    np.testing.assert_allclose(kept.mean(axis=1), 0.8 * 0.7, atol=4 * 0.5 / batch**0.5)
    none = ~kept.any(axis=0)
    assert abs(none.mean() - (0.2 + 0.8 * 0.3**4)) < 4 * 0.4 / batch**0.5
    assert jax.tree.structure(left) == jax.tree.structure(given)
    some = jax.tree.map(lambda leaf: leaf[5:7], given)
    alone = conditions.drop(SMALL, keys[5:7], some, 0.2, 0.3)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[5:7]), alone, left)


@pytest.mark.parametrize(
    ("config", "shape", "noise", "message"),
    [
        (SMALL, (1, 4, 6, 5), (1,), "4 tracks of 5 latents, expected 1 to 3 of 5"),
        (SMALL, (1, 3, 6, 4), (1,), "3 tracks of 4 latents"),
        (SMALL, (1, 3, 5, 5), (1,), "tracks of 5 frames, expected a multiple of 2"),
        (SMALL, (1, 3, 0, 5), (1,), "tracks of 0 frames"),
        (SMALL, (1, 3, 6, 5), (1, 2), r"shape \(1, 2\), expected \(1, 3\)"),
        (
            dataclasses.replace(SMALL, per_track=False),
            (1, 3, 6, 5),
            (1, 3),
            r"shape \(1, 3\), expected \(1,\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(config, shape, noise, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(DiT(config).init, jax.random.key(0), np.ones(shape), np.ones(noise))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(categories=np.full((1, 3), 6)), "categories: values from 6 to 6, expected 0 to 5"),
        (dict(chords=np.full((1, 6), 8)), "chords: values from 8 to 8, expected 0 to 7"),
        (dict(present=np.ones((1, 2), bool)), r"present: shape is \(1, 2\), expected \(1, 3\)"),
        (dict(melody=np.ones((1, 6, 11))), r"melody: shape is \(1, 6, 11\), expected \(1, 6, 12\)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        conditions.complete(SMALL, StemCondition(**fields), 1, 3, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dtype="float16"), "model.dtype is 'float16'"),
        (dict(remat="some"), "model.remat is 'some'"),
        (dict(heads=7), "model.heads is 7, expected a number that splits dim 1536"),
        (dict(heads=0), "model.heads is 0"),
        (dict(layers=0), "model.layers is 0, expected at least 1"),
        (dict(depth=3), "model.depth: unknown field"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        DiTConfig.from_config(change)


def test_full_size():
    """What a layer has, from its widths."""
    config = DiTConfig(stems=5, categories=5, text_width=768)
    width, text = 1536, 768
    attention, cross = 4 * width**2, 2 * width**2 + 2 * width * text
    layer = 2 * attention + cross + 3 * width * config.ff + 12 * width
    noise = 128 + (256 + 1) * width + (width + 1) * width + 5 * width
    outside = noise + (width + 1) * 14 * width + (64 + 1) * width + (width + 1) * 64
    assert tree.size(shapes_of(config)) == 24 * layer + outside
