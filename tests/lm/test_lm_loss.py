"""The losses against optax and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mgen.lm import loss

B, L, K, V = 2, 5, 3, 7
LOGITS = jax.random.normal(jax.random.key(0), (B, L, K, V)) * 3
TARGETS = jax.random.randint(jax.random.key(1), (B, L, K), 0, V)
MASK = jax.random.bernoulli(jax.random.key(2), 0.6, (B, L, K))


def cross_entropy(logits, targets, mask, **terms):
    """The mean over codebooks, and each codebook's."""
    found = loss.losses(lambda x: x, logits, targets, mask, **terms)["objective"]
    return found.mean(), found


def masked(values):
    return (values * MASK).sum((0, 1)) / MASK.sum((0, 1))


def test_cross_entropy_is_optax_on_unmasked_positions():
    special = jnp.where(MASK, TARGETS, V)  # out of range where masked, as in a layout
    total, per_codebook = cross_entropy(LOGITS, special, MASK)
    expected = masked(optax.softmax_cross_entropy_with_integer_labels(LOGITS, TARGETS))
    np.testing.assert_allclose(per_codebook, expected, rtol=1e-5)
    np.testing.assert_allclose(total, expected.mean(), rtol=1e-5)


def test_label_smoothing_and_z_loss_are_optax():
    smooth = optax.smooth_labels(jax.nn.one_hot(TARGETS, V), 0.1)
    expected = masked(optax.softmax_cross_entropy(LOGITS, smooth))
    _, got = cross_entropy(LOGITS, TARGETS, MASK, label_smoothing=0.1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    plain = masked(optax.softmax_cross_entropy_with_integer_labels(LOGITS, TARGETS))
    z = masked(jax.nn.logsumexp(LOGITS, axis=-1) ** 2)
    _, got = cross_entropy(LOGITS, TARGETS, MASK, z_loss=0.01)
    np.testing.assert_allclose(got, plain + 0.01 * z, rtol=1e-5)


def test_masked_positions_get_no_gradient_and_low_precision_logits_are_summed_in_float32():
    grad = jax.grad(lambda x: cross_entropy(x, TARGETS, MASK)[0])(LOGITS)
    np.testing.assert_array_equal(np.any(grad != 0, axis=-1), MASK)
    total, _ = cross_entropy(LOGITS.astype(jnp.bfloat16), TARGETS, MASK)
    assert total.dtype == jnp.float32


def test_hits():
    logits = jax.nn.one_hot(TARGETS, V) + 0.1 * jax.random.normal(jax.random.key(3), (B, L, K, V))
    wrong = logits.at[0, :, 0].set(-logits[0, :, 0])
    found = loss.losses(lambda x: x, wrong, TARGETS, jnp.ones((1, 1, 1), bool))
    np.testing.assert_allclose(found["hits"], [0.5, 1.0, 1.0])


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_give_the_same_values_and_gradients(chunk):
    """Dense and chunked, with a mask and every term; sums of 10 terms in another order."""
    kernel = jax.random.normal(jax.random.key(4), (V, V))

    def objective(kernel, chunk):
        heads = lambda top: top @ kernel  # noqa: E731
        terms = dict(chunk=chunk, z_loss=0.01, label_smoothing=0.1)
        found = loss.losses(heads, LOGITS, TARGETS, MASK, **terms)
        return found["objective"].mean(), found

    (_, dense), dense_grad = jax.value_and_grad(objective, has_aux=True)(kernel, 0)
    (_, found), grad = jax.value_and_grad(objective, has_aux=True)(kernel, chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), dense, found)
    np.testing.assert_allclose(grad, dense_grad, rtol=1e-4, atol=1e-5)
    _, per_codebook = cross_entropy(LOGITS @ kernel, TARGETS, MASK)
    np.testing.assert_allclose(dense["nats"], per_codebook, rtol=1e-5)
