"""Cross-entropy over codebook streams, in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from mgen.typing import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "B L K V"],
    targets: Int[Array, "B L K"],
    mask: Bool[Array, "#B L K"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Array, Float[Array, " K"]]:
    """Mean over codebooks of the mean over unmasked positions (nats), and those K means.

    Args:
      targets: read only where `mask` is True, where they lie in [0, V).
      z_loss: weight of log(sum exp logits)^2, which keeps logits from drifting (PaLM, section 5).
      label_smoothing: share of the target spread evenly over the V codes.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)  # [B, L, K]
    index = jnp.where(mask, targets, 0)[..., None]
    loss = normaliser - jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    if label_smoothing:
        uniform = normaliser - logits.mean(axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * uniform
    if z_loss:
        loss = loss + z_loss * jnp.square(normaliser)
    per_codebook = masked_mean(loss, mask)
    return per_codebook.mean(), per_codebook


def accuracy(
    logits: Float[Array, "B L K V"], targets: Int[Array, "B L K"], mask: Bool[Array, "#B L K"]
) -> Float[Array, " K"]:
    """Share of unmasked positions where the largest logit is the target's, by codebook."""
    return masked_mean((logits.argmax(axis=-1) == targets).astype(jnp.float32), mask)


def masked_mean(values: Float[Array, "B L K"], mask: Bool[Array, "#B L K"]) -> Float[Array, " K"]:
    weight = jnp.broadcast_to(mask, values.shape).astype(jnp.float32)
    return (values * weight).sum(axis=(0, 1)) / jnp.maximum(weight.sum(axis=(0, 1)), 1.0)


def unigram_entropy(counts: Int[np.ndarray, "K V"]) -> Float[np.ndarray, " K"]:
    """Entropy in nats of each codebook's empirical distribution.

    On the counts of a data set this is the loss of the best model that ignores context, so a language model that learnt
    anything lies below it. Empty codebooks give 0.
    """
    total = counts.sum(axis=-1, keepdims=True)
    p = counts / np.maximum(total, 1)
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=-1)
