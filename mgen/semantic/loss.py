"""Losses over masked frames."""

import jax
import jax.numpy as jnp

from mgen.typing import Array, Bool, Float, Int


def masked_mean(values: Float[Array, "B F"], mask: Bool[Array, "B F"]) -> Array:
    """Mean over the frames where `mask`; 0 where there is none."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def cross_entropy(
    logits: Float[Array, "B F K V"], codes: Int[Array, "B F K"], mask: Bool[Array, "B F"]
) -> tuple[Array, Array]:
    """Nats [K] and share of hits [K] over the masked frames."""
    chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    # A maximum costs a tenth of an argmax on a CPU.
    hits = (chosen >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    mean = jax.vmap(masked_mean, in_axes=(-1, None))
    return mean(nats, mask), mean(hits, mask)


def regression(
    prediction: Float[Array, "B F M"], target: Float[Array, "B F M"], mask: Bool[Array, "B F"]
) -> tuple[Array, Array]:
    """Squared error over the masked frames, mean over bins, and that of each bin's mean over the
    same frames: what a model scores that knows nothing."""
    weight = mask[..., None] / jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(weight * target, axis=(0, 1), keepdims=True)
    error, spread = (
        jnp.sum(weight * jnp.square(target - other)) / target.shape[-1]
        for other in (prediction, mean)
    )
    return error, spread


def perplexity(codes: Int[Array, "B F K"], size: int) -> Float[Array, " K"]:
    """exp of the entropy of each codebook's use in the batch: V for uniform use, 1 for one code."""
    rows = codes.reshape(-1, codes.shape[-1])
    counts = jax.vmap(lambda column: jnp.bincount(column, length=size), in_axes=1)(rows)
    share = counts / rows.shape[0]
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), axis=-1))
