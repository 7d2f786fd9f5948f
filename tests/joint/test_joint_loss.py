"""Losses: formulas, chunks and meshes against the dense value, memory, equal captions."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.joint import loss

B, D = 24, 8
PROBABILISTIC = ("contrastive", "sigmoid")
KINDS = (*PROBABILISTIC, "triplet")
MARGIN = 0.4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs(batch=B, dim=D, seed=0):
    rng = np.random.default_rng(seed)
    audio, text = rng.normal(size=(2, batch, dim))
    return jnp.asarray(unit(audio), jnp.float32), jnp.asarray(unit(text + audio), jnp.float32)


def some_groups(batch=B):
    return jnp.asarray(np.random.default_rng(1).integers(0, batch // 2, batch), jnp.int32)


def evaluate(kind, audio, text, groups, chunk=0):
    """Value and gradients towards embeddings and scalars."""
    log_scale, bias = jnp.asarray(1.3), jnp.asarray(-2.0)

    def value(audio, text, log_scale, bias):
        if kind == "contrastive":
            return loss.contrastive(audio, text, log_scale, groups, chunk)
        if kind == "triplet":
            return loss.triplet(audio, text, MARGIN, groups, chunk)
        return loss.sigmoid(audio, text, log_scale, bias, groups, chunk)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))(audio, text, log_scale, bias)


def triplet_by_loops(audio, text, groups):
    """Value, gradients towards both sides, and how often the nearest farther negative, the farthest
    nearer one and none at all was taken."""
    sides = [np.asarray(audio, np.float64), np.asarray(text, np.float64)]
    total, grads, taken = 0.0, [np.zeros_like(side) for side in sides], [0, 0, 0]
    for anchors, others in ((0, 1), (1, 0)):
        x, y = sides[anchors], sides[others]
        for i in range(len(x)):
            distance = [2 - 2 * float(x[i] @ row) for row in y]
            negatives = [j for j in range(len(y)) if groups[j] != groups[i]]
            farther = [j for j in negatives if distance[j] > distance[i]]
            taken[0 if farther else 1 if negatives else 2] += 1
            if not negatives:
                continue
            if farther:
                j = min(farther, key=lambda j: distance[j])
            else:
                j = max(negatives, key=lambda j: distance[j])
            cost = distance[i] - distance[j] + MARGIN
            if cost > 0:
                total += cost
                grads[anchors][i] += 2 * (y[j] - y[i])
                grads[others][i] -= 2 * x[i]
                grads[others][j] += 2 * x[i]
    scale = 1 / (2 * len(sides[0]))
    return total * scale, [grad * scale for grad in grads], taken


def brute_force(kind, audio, text, groups):
    if kind == "triplet":
        return triplet_by_loops(audio, text, groups)[0]
    audio, text = np.asarray(audio, np.float64), np.asarray(text, np.float64)
    scores, total = np.exp(1.3) * audio @ text.T, 0.0
    for i in range(len(audio)):
        others = [j for j in range(len(audio)) if groups[j] != groups[i]]
        if kind == "contrastive":
            for row in (scores[i], scores[:, i]):
                total += 0.5 * (np.log(sum(np.exp(row[[i, *others]]))) - scores[i, i])
        else:
            total += np.log1p(np.exp(-(scores[i, i] - 2.0)))
            total += np.log1p(np.exp(scores[i, others] - 2.0)).sum()
    return total / len(audio)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeated", [False, True])
def test_formula(kind, repeated):
    audio, text = pairs()
    groups = some_groups() if repeated else jnp.arange(B)
    expected = brute_force(kind, audio, text, np.asarray(groups))
    value, _ = evaluate(kind, audio, text, groups if repeated else None)
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # float32 against float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 5, 8, 100])
def test_chunks_equal_dense(kind, chunk):
    """float32 sums in another order. 5 does not divide 24: 4 is taken."""
    audio, text = pairs()
    groups = some_groups()
    dense, chunked = (evaluate(kind, audio, text, groups, c) for c in (0, chunk))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), chunked, dense
    )
    close = loss.accuracy(audio, text, groups, chunk), loss.accuracy(audio, text, groups)
    np.testing.assert_allclose(*close, atol=1e-6)


EIGHT_DEVICES = """
import sys, pathlib, importlib.util
import jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
import numpy as np
spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec); spec.loader.exec_module(tests)
from mgen.joint import loss
from mgen.sharding.mesh import batch_sharding, make_mesh

audio, text = tests.pairs(48)
groups = tests.some_groups(48)
for kind in tests.KINDS:
    dense = jax.device_get(tests.evaluate(kind, audio, text, groups))
    for spec in ("data=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2"):
        put = lambda x: jax.device_put(x, batch_sharding(make_mesh(spec)))
        for chunk in (0, 2):
            result = tests.evaluate(kind, put(audio), put(text), put(groups), chunk)
            # Rows of the gradient stay on the device of their example.
            assert len(result[1][0].sharding.device_set) == 8
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=spec),
                jax.device_get(result), dense)
        np.testing.assert_allclose(
            jax.jit(loss.accuracy)(put(audio), put(text), put(groups)),
            loss.accuracy(audio, text, groups), atol=1e-6)
# Each device holds its rows of scores only.
program = jax.jit(lambda *args: loss.contrastive(*args, chunk=0)).lower(
    put(audio), put(text), jax.numpy.zeros(()), put(groups)).compile().as_text()
assert "f32[12,48]" in program and "f32[48,48]" not in program
print("equal")
"""


def test_eight_devices_equal_one():
    """Gathered negatives; 1e-6, relative above 1, for float32 sums in another order."""
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, __file__], capture_output=True, text=True
    )
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_chunks_is_linear_in_the_batch(kind):
    """Temporary bytes of the compiled value and gradient, batch four times as large."""

    def temporary(batch, chunk):
        side = jax.ShapeDtypeStruct((batch, D), jnp.float32)
        groups = jax.ShapeDtypeStruct((batch,), jnp.int32)
        run = jax.jit(lambda *sides: evaluate(kind, *sides, chunk))
        return run.lower(side, side, groups).compile().memory_analysis().temp_size_in_bytes

    small, large = 512, 2048
    assert temporary(large, 0) > 12 * temporary(small, 0)  # 16 times the scores
    assert temporary(large, 64) < 6 * temporary(small, 64)
    assert temporary(large, 64) < temporary(large, 0) / 8


@pytest.mark.parametrize("kind", PROBABILISTIC)
def test_collapse_costs_chance(kind):
    same = jnp.tile(jnp.asarray(unit(np.ones((1, D))), jnp.float32), (B, 1))
    for groups in (jnp.arange(B), some_groups()):
        expected = loss.chance(kind, groups)
        if kind == "contrastive":
            value = loss.contrastive(same, same, jnp.asarray(2.0), groups)
            np.testing.assert_allclose(value, expected, rtol=1e-5)
        else:
            costs = [
                loss.sigmoid(same, same, jnp.asarray(0.0), jnp.asarray(b), groups)
                for b in np.linspace(-6, 0, 601)
            ]
            np.testing.assert_allclose(min(costs), expected, rtol=1e-4)
    np.testing.assert_allclose(loss.chance("contrastive", jnp.arange(B)), np.log(B), rtol=1e-6)
    assert loss.accuracy(same, same) == (0.0, 0.0)


@pytest.mark.parametrize("noise", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("repeated", [False, True])
def test_triplet_and_its_gradient_equal_loops(noise, repeated):
    """float32 against float64. Of close pairs most cost nothing, of far ones most negatives are
    nearer than the positive."""
    rng = np.random.default_rng(5)
    audio = rng.normal(size=(B, D))
    audio, text = (
        jnp.asarray(unit(x), jnp.float32) for x in (audio, audio + noise * rng.normal(size=(B, D)))
    )
    groups = some_groups() if repeated else jnp.arange(B)
    expected, grads, taken = triplet_by_loops(audio, text, np.asarray(groups))
    value, found = evaluate("triplet", audio, text, groups)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(found[0], grads[0], atol=1e-6)
    np.testing.assert_allclose(found[1], grads[1], atol=1e-6)
    assert not np.any(found[2]) and not np.any(found[3])
    if noise == 0.2:
        assert expected < 0.1 * MARGIN
    if noise == 30.0:
        assert min(taken[:2]) >= 1 and expected > 0.5 * MARGIN


def test_triplet_costs_its_margin_where_all_are_equal_and_nothing_without_negatives():
    same = jnp.tile(jnp.asarray(unit(np.ones((1, D))), jnp.float32), (B, 1))
    np.testing.assert_allclose(loss.triplet(same, same, MARGIN), MARGIN, rtol=1e-5)
    audio, text = pairs()
    value, grads = evaluate("triplet", audio, text, jnp.zeros(B, jnp.int32))
    assert value == 0 and not any(np.any(grad) for grad in grads)


@pytest.mark.parametrize("kind", PROBABILISTIC)
def test_one_text_alone_is_finite(kind):
    """No negatives at all: the value and every gradient stay finite."""
    audio, text = pairs()
    result = evaluate(kind, audio, text, jnp.zeros(B, jnp.int32))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
    assert np.isfinite(loss.chance(kind, jnp.zeros(B, jnp.int32)))


def test_scale_is_clamped():
    audio, text = pairs()
    value = jax.value_and_grad(lambda log_scale: loss.contrastive(audio, text, log_scale))
    above, at_limit = value(jnp.asarray(9.0)), value(jnp.asarray(loss.MAX_LOG_SCALE))
    np.testing.assert_allclose(above[0], at_limit[0], rtol=1e-6)
    assert above[1] == 0


def test_accuracy_counts_both_ways():
    audio = jnp.eye(4)
    text = audio[jnp.asarray([0, 1, 2, 2])]
    # Audio 3 finds nothing like it; text 3 finds audio 2. Audio 2 ties between texts 2 and 3.
    np.testing.assert_allclose(loss.accuracy(audio, text), [0.5, 0.75])
    groups = jnp.asarray([0, 1, 2, 2])
    np.testing.assert_allclose(loss.accuracy(audio, text, groups), [0.75, 0.75])


def test_slap_is_its_formula_and_stops_at_the_targets():
    audio, text = pairs()
    (audio_target, text_target), w = pairs(seed=3), 0.3

    def value(predictions, targets):
        return loss.slap(predictions, targets, w)[0]

    predictions, targets = (3.0 * audio, text), (audio_target, 2.0 * text_target)
    result, inter, intra = loss.slap(predictions, targets, w)
    distance = lambda x, y: float(np.mean(2 - 2 * np.sum(np.asarray(x) * np.asarray(y), -1)))  # noqa: E731
    across = (distance(audio, text_target) + distance(text, audio_target)) / 2
    within = (distance(audio, audio_target) + distance(text, text_target)) / 2
    np.testing.assert_allclose(
        [result, inter, intra], [0.7 * across + 0.3 * within, across, within], rtol=1e-5
    )
    grads = jax.grad(value, argnums=(0, 1))(predictions, targets)
    assert all(np.any(g != 0) for g in grads[0]) and all(np.all(g == 0) for g in grads[1])
    assert loss.slap((audio, audio), (audio, audio))[0] < 1e-5


def test_groups_follow_the_text_and_not_the_padding():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 512, (2000, 12)), jnp.int32)
    mask = jnp.arange(12)[None] < jnp.asarray(rng.integers(4, 13, 2000))[:, None]
    groups = loss.groups_of(ids, mask)
    assert len(np.unique(groups)) == 2000
    np.testing.assert_array_equal(loss.groups_of(jnp.where(mask, ids, 7), mask), groups)
    # Order counts, and so does a padded token against token 0.
    assert not np.any(loss.groups_of(ids[:, ::-1], mask[:, ::-1]) == groups)
    short = jnp.asarray([[5, 0, 0]]), jnp.asarray([[True, True, False], [True, False, False]])
    assert len(np.unique(loss.groups_of(jnp.tile(short[0], (2, 1)), short[1]))) == 2
