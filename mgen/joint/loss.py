"""Losses of a joint embedding of audio and text, or of two renditions of one music.

Symbols: a_i, t_i the unit embeddings of the audio and the text (the other rendition) of example i
of a batch of B, s the learned scale (inverse temperature), s_ij = s <a_i, t_j>, N_i the examples
whose text (piece) differs from that of i. Captions drawn from templates repeat, and an equal text
is no negative: it leaves both sums and is not a positive either.

Contrastive (Radford et al. 2021, "CLIP", figure 3, each sum under its own logarithm; MuLan has both
under one), with s = exp(min(log_scale, ln 100)):

  (1)  L = 1/2B sum_i [ln(e^s_ii + sum_{j in N_i} e^s_ij) + ln(e^s_ii + sum_{j in N_i} e^s_ji)
                       - 2 s_ii]

Sigmoid (Zhai et al. 2023, "SigLIP", equation 2), with a learned bias b:

  (2)  L = 1/B sum_i [ln(1 + e^-(s_ii + b)) + sum_{j in N_i} ln(1 + e^(s_ij + b))]

Collapsed embeddings (all equal) cost, with n_i = |N_i|:

  (3)  contrastive: mean ln(1 + n_i), ln B without repeated texts;
       sigmoid: the least over b, ln(1 + n) + n ln(1 + 1/n) at the mean n.

Negative-free (Guinot et al. 2025, "SLAP", after BYOL), with p_a, p_t the predictions from the
trained towers, z_a, z_t what slowly moving copies of the towers give, d(p, z) = 2 - 2 cos(p, z) and
w the weight of the terms within a modality:

  (4)  L = (1 - w)/2 mean[d(p_a, z_t) + d(p_t, z_a)] + w/2 mean[d(p_a, z_a) + d(p_t, z_t)]

Triplet (Schroff et al. 2015, "FaceNet", equation 3, with the semi-hard negatives of their equation
4), with d_ij = |a_i - t_j|^2 = 2 - 2 <a_i, t_j> and a margin m:

  (5)  L = 1/2B sum_i [max(0, d_ii - d_ij(i) + m) + max(0, d_ii - d_k(i)i + m)]
       j(i) = argmin of d_ij over the j in N_i with d_ij > d_ii,
              argmax of d_ij over all j in N_i where there is no such j,

and k(i) likewise among d_ki: the nearest negative that is farther than the positive; where all are
nearer, the farthest, as the hardest negatives lead to collapse. Nothing is learned through the
choice. Collapsed embeddings cost m; an example without negatives costs nothing.

(1), (2) and (5) compare every row of the batch with all others. With `chunk` > 0 only chunk x B
scores exist at a time, also in the backward pass, which computes them again: memory is linear in B.
On a mesh each device keeps its rows and gathers the other side (B x D), so the negatives are those
of the whole batch.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mgen.typing import Array, Bool, Float, Int

MAX_LOG_SCALE = float(np.log(100.0))
# Score of a pair that does not count: far below any other, finite so that no gradient is NaN.
EXCLUDED = -1e9
DATA_AXES = ("data", "fsdp")

# One side of a comparison: audio [n, D], text [n, D], groups [n].
Side: TypeAlias = tuple[Array, Array, Array]


def contrastive(
    audio: Float[Array, "B D"],
    text: Float[Array, "B D"],
    log_scale: Float[Array, ""],
    groups: Int[Array, " B"] | None = None,
    chunk: int = 0,
) -> Float[Array, ""]:
    """Equation (1), nats.

    Args:
      audio, text: unit embeddings; row i of each belong together.
      log_scale: ln s, clamped at ln 100.
      groups: examples of one number are no negatives of each other (see `groups_of`); None
        stands for all different.
      chunk: rows compared at a time (the largest divisor of a device's rows that is not larger); 0
        for all.
    """

    def term(rows: Side, columns: Side, log_scale: Array) -> Array:
        scale = jnp.exp(jnp.minimum(log_scale, MAX_LOG_SCALE))
        positive = scale * _paired(rows)
        (to_text, to_audio), excluded = _scores(rows, columns, scale)

        def cost(scores: Array) -> Array:
            negatives = jax.nn.logsumexp(jnp.where(excluded, EXCLUDED, scores), axis=1)
            return jnp.logaddexp(positive, negatives) - positive

        return 0.5 * (cost(to_text) + cost(to_audio))

    return _batch_mean(term, audio, text, groups, chunk, log_scale)


def sigmoid(
    audio: Float[Array, "B D"],
    text: Float[Array, "B D"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    groups: Int[Array, " B"] | None = None,
    chunk: int = 0,
) -> Float[Array, ""]:
    """Equation (2), nats an example; arguments as of `contrastive`, `log_scale` not clamped."""

    def term(rows: Side, columns: Side, log_scale: Array, bias: Array) -> Array:
        scale = jnp.exp(log_scale)
        (to_text, _), excluded = _scores(rows, columns, scale)
        negatives = jnp.where(excluded, 0.0, jax.nn.softplus(to_text + bias)).sum(axis=1)
        return jax.nn.softplus(-(scale * _paired(rows) + bias)) + negatives

    return _batch_mean(term, audio, text, groups, chunk, log_scale, bias)


def triplet(
    audio: Float[Array, "B D"],
    text: Float[Array, "B D"],
    margin: float,
    groups: Int[Array, " B"] | None = None,
    chunk: int = 0,
) -> Float[Array, ""]:
    """Equation (5), a squared distance; `margin` is m, other arguments as of `contrastive`."""

    def term(rows: Side, columns: Side) -> Array:
        positive = 2.0 - 2.0 * _paired(rows)
        sides, excluded = _scores(rows, columns, jnp.ones(()))

        def cost(scores: Array) -> Array:
            distances = 2.0 - 2.0 * scores
            farther = ~excluded & (distances > positive[:, None])
            nearest = jnp.where(farther, distances, -EXCLUDED).min(axis=1)
            farthest = jnp.where(excluded, EXCLUDED, distances).max(axis=1)
            negative = jnp.where(farther.any(axis=1), nearest, farthest)
            loss = jax.nn.relu(positive - negative + margin)
            return jnp.where(excluded.all(axis=1), 0.0, loss)

        return 0.5 * (cost(sides[0]) + cost(sides[1]))

    return _batch_mean(term, audio, text, groups, chunk)


def slap(
    predictions: tuple[Float[Array, "B D"], Float[Array, "B D"]],
    targets: tuple[Float[Array, "B D"], Float[Array, "B D"]],
    intra_weight: float = 0.5,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Equation (4), and its terms across modalities and within them (each a mean d in [0, 4]).

    Args:
      predictions, targets: (audio, text), of any length. Nothing is learned through the targets.
    """
    audio, text = map(normalise, predictions)
    audio_target, text_target = (jax.lax.stop_gradient(normalise(z)) for z in targets)

    def distance(x: Array, y: Array) -> Array:
        return 2.0 - 2.0 * jnp.mean(jnp.sum(x * y, axis=-1))

    inter = 0.5 * (distance(audio, text_target) + distance(text, audio_target))
    intra = 0.5 * (distance(audio, audio_target) + distance(text, text_target))
    return (1.0 - intra_weight) * inter + intra_weight * intra, inter, intra


def accuracy(
    audio: Float[Array, "B D"],
    text: Float[Array, "B D"],
    groups: Int[Array, " B"] | None = None,
    chunk: int = 0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Share of examples whose own text (audio) is nearer than every negative: audio to text, text
    to audio. A tie is a miss, so collapsed embeddings score 0."""

    def term(rows: Side, columns: Side) -> Array:
        positive = _paired(rows)
        sides, excluded = _scores(rows, columns, jnp.ones(()))
        nearest = [jnp.where(excluded, EXCLUDED, scores).max(axis=1) for scores in sides]
        return jnp.stack([positive > best for best in nearest], axis=-1).astype(jnp.float32)

    # No gradient, and no second set of scores for one.
    audio, text = jax.lax.stop_gradient((audio, text))
    return tuple(_batch_mean(term, audio, text, groups, chunk))


def chance(kind: str, groups: Int[Array, " B"]) -> Float[Array, ""]:
    """Equation (3) for `kind` "contrastive" or "sigmoid": what collapsed embeddings cost."""
    ordered = jnp.sort(groups)
    repeats = jnp.searchsorted(ordered, ordered, side="right") - jnp.searchsorted(ordered, ordered)
    negatives = (groups.shape[0] - repeats).astype(jnp.float32)
    if kind == "contrastive":
        return jnp.log1p(negatives).mean()
    # A batch of one text has no negatives; x ln(1 + 1/x) goes to 0 there.
    n = jnp.maximum(negatives.mean(), 1e-6)
    return jnp.log1p(n) + n * jnp.log1p(1.0 / n)


def captioning(
    logits: Float[Array, "B L V"], ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, ""]:
    """Mean cross-entropy (nats a token) of `ids` where `mask` is True; position l of the logits is
    the prediction of token l from those before it."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.where(mask, nats, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def groups_of(ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """A number for each text, equal where the texts are: a 32-bit hash of the tokens.

    Two texts that differ meet with probability 2^-32; such a pair is then no negative, no more.
    """
    draw = np.random.default_rng(0).integers(0, 2**31, (2, ids.shape[1]), dtype=np.int64)
    # Odd factors are invertible; squaring in between keeps sums of two changes from cancelling.
    factors, offsets = (jnp.asarray(x, jnp.uint32)[None] for x in (2 * draw[0] + 1, draw[1]))
    tokens = jnp.where(mask, ids + 1, 0).astype(jnp.uint32)
    mixed = (tokens + offsets) * factors
    mixed = (mixed ^ (mixed >> 15)) * factors
    return (mixed ^ (mixed >> 13)).sum(axis=1, dtype=jnp.uint32).astype(jnp.int32)


def normalise(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """To length 1; the gradient at 0 is finite."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def _paired(rows: Side) -> Float[Array, " n"]:
    """<a_i, t_i>."""
    return jnp.sum(rows[0] * rows[1], axis=-1)


def _scores(rows: Side, columns: Side, scale: Array) -> tuple[tuple[Array, Array], Array]:
    """s_ij and s_ji [n, B] of some rows i and all j, and where j is not in N_i."""
    (audio, text, groups), (all_audio, all_text, all_groups) = rows, columns
    to_text, to_audio = audio @ all_text.T, text @ all_audio.T
    return (scale * to_text, scale * to_audio), groups[:, None] == all_groups[None]


def _batch_mean(
    term: Callable[..., Array],
    audio: Array,
    text: Array,
    groups: Array | None,
    chunk: int,
    *scalars: Array,
) -> Array:
    """Mean over the batch of `term(rows, columns, *scalars)` [n, ...], the rows taken a chunk at a
    time and, where the batch is spread over a mesh, on their own device."""
    if groups is None:
        groups = jnp.arange(audio.shape[0], dtype=jnp.int32)
    # Under jit the type of an array tells its mesh, and nothing of how it is split.
    mesh = jax.typeof(audio).sharding.mesh
    axes = tuple(name for name in DATA_AXES if name in mesh.shape)
    shards = int(np.prod([mesh.shape[name] for name in axes]))
    sides = audio.astype(jnp.float32), text.astype(jnp.float32), groups
    if shards == 1 or audio.shape[0] % shards:
        return _chunked_mean(term, sides, sides, chunk, scalars)

    def local(rows: Side, all_groups: Array, scalars: tuple[Array, ...]) -> Array:
        both = jnp.concatenate(rows[:2], axis=1)  # one collective, and one in the backward pass
        both = jax.lax.all_gather(both, axes, tiled=True)
        all_audio, all_text = jnp.split(both, [rows[0].shape[1]], axis=1)
        columns = all_audio, all_text, all_groups
        # Cast here and not where each chunk reads them, or the sum of their gradients over the
        # devices would be taken once a chunk.
        scalars = jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), scalars)
        return jax.lax.pmean(_chunked_mean(term, rows, columns, chunk, scalars), axes)

    split, whole = PartitionSpec(axes), PartitionSpec()
    spread = jax.shard_map(local, mesh=mesh, in_specs=(split, whole, whole), out_specs=whole)
    return spread(sides, groups, scalars)


def _chunked_mean(
    term: Callable[..., Array], rows: Side, columns: Side, chunk: int, scalars: tuple[Array, ...]
) -> Array:
    count = rows[0].shape[0]
    if not 0 < chunk < count:
        return term(rows, columns, *scalars).mean(axis=0)
    size = max(n for n in range(1, chunk + 1) if count % n == 0)
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
    # Without the checkpoint the scores of all blocks would be kept for the backward pass.
    block_term = jax.checkpoint(lambda block: term(block, columns, *scalars), prevent_cse=False)
    return jax.lax.map(block_term, blocks).mean(axis=(0, 1))
