"""Cross-entropy over codebooks, in float32; whole or in chunks of frames."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mgen.typing import Array, Bool, Float, Int


def token_nats(
    logits: Float[Array, "*B V"],
    targets: Int[Array, "*B"],
    mask: Bool[Array, "..."],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Array, "*B"]:
    """The loss of each token, anything where `mask` is False.

    Args:
      targets: read only where `mask` is True, where they lie in [0, V).
      z_loss: weight of log(sum exp logits)^2, which keeps logits from drifting (PaLM, section 5).
      label_smoothing: share of the target spread evenly over the V codes.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    index = jnp.where(mask, targets, 0)[..., None]
    loss = normaliser - jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    if label_smoothing:
        uniform = normaliser - logits.mean(axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * uniform
    if z_loss:
        loss = loss + z_loss * jnp.square(normaliser)
    return loss


def token_hits(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"], mask: Bool[Array, "..."]
) -> Float[Array, "*B"]:
    """1 where no logit is larger than the target's."""
    index = jnp.where(mask, targets, 0)[..., None]
    target = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    # A maximum costs a tenth of an argmax on a CPU.
    return (target >= logits.max(axis=-1)).astype(jnp.float32)


def losses(
    heads: Callable[[Array], Array],
    top: Float[Array, "B F k D"],
    targets: Int[Array, "B F K"],
    mask: Bool[Array, "#B #F #K"],
    *,
    chunk: int = 0,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> dict[str, Float[Array, " K"]]:
    """Means by codebook over unmasked positions: "objective" (with z-loss and smoothing), "nats"
    and "hits"; and "share", that of each codebook in those positions.

    Args:
      heads: what the heads read to logits [B, F, K, V].
      chunk: frames whose logits exist at once (they are computed again for the gradient); 0 is all
        of them. A vocabulary of thousands over minutes does not fit otherwise.
      z_loss, label_smoothing: see `token_nats`.
    """
    mask = jnp.broadcast_to(mask, targets.shape)

    def sums(top: Array, targets: Array, mask: Array) -> dict[str, Array]:
        logits = heads(top)
        nats = token_nats(logits, targets, mask)
        plain = not (z_loss or label_smoothing)
        values = {
            "objective": nats
            if plain
            else token_nats(logits, targets, mask, z_loss, label_smoothing),
            "nats": nats,
            "hits": token_hits(jax.lax.stop_gradient(logits), targets, mask),
        }
        return {name: (value * mask).sum(axis=(0, 1)) for name, value in values.items()}

    frames = targets.shape[1]
    if not chunk or chunk >= frames:
        total = sums(top, targets, mask)
    else:
        total = _summed(jax.checkpoint(sums), (top, targets, mask), chunk)
    count = mask.sum(axis=(0, 1))
    means = {name: value / jnp.maximum(count, 1) for name, value in total.items()}
    return means | {"share": count / jnp.maximum(count.sum(), 1)}


def _summed(
    sums: Callable[..., dict[str, Array]], arrays: tuple[Array, ...], chunk: int
) -> dict[str, Array]:
    """`sums` over chunks of axis 1, the last one filled up with masked frames."""

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    parts = tuple(cut(x) for x in arrays)

    def add(total: dict[str, Array], part: tuple[Array, ...]) -> tuple[dict[str, Array], None]:
        return jax.tree.map(jnp.add, total, sums(*part)), None

    first = sums(*(x[0] for x in parts))
    total, _ = jax.lax.scan(add, first, tuple(x[1:] for x in parts))
    return total
