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
    """Share of unmasked positions where no logit is larger than the target's, by codebook."""
    index = jnp.where(mask, targets, 0)[..., None]
    target = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    # A maximum costs a tenth of an argmax on a CPU.
    return masked_mean((target >= logits.max(axis=-1)).astype(jnp.float32), mask)


def masked_mean(values: Float[Array, "B L K"], mask: Bool[Array, "#B L K"]) -> Float[Array, " K"]:
    weight = jnp.broadcast_to(mask, values.shape).astype(jnp.float32)
    return (values * weight).sum(axis=(0, 1)) / jnp.maximum(weight.sum(axis=(0, 1)), 1.0)


def unigram_cross_entropy(
    train_counts: Int[np.ndarray, "K V"], counts: Int[np.ndarray, "K V"]
) -> Float[np.ndarray, " K"]:
    """Nats a token, by codebook, that the frequencies of `train_counts` cost on the tokens counted
    in `counts`: the loss of a model that ignores context.

    Every code counts one more in training, so that none is impossible. Codebooks with no tokens in
    `counts` give 0.
    """
    p = (train_counts + 1) / (train_counts + 1).sum(axis=-1, keepdims=True)
    return -(counts * np.log(p)).sum(axis=-1) / np.maximum(counts.sum(axis=-1), 1)
