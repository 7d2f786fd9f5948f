"""Residual vector quantisers: EMA codebooks (SoundStream, EnCodec) and factorised, L2-normalised
ones (DAC).

Level k quantises what levels 0..k-1 left over:  r_0 = z,  c_k = argmin_j |r_k - e_kj|,  r_{k+1} =
r_k - e_k[c_k]. Levels run in `lax.scan` (unrolled they take a minute to compile).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.codec.config import CodecConfig
from mgen.nn.cluster import assignment_sums, nearest, residual_codes
from mgen.nn.norm import weight_norm
from mgen.typing import Array, Float, Int, Key

LAPLACE = 1e-5


class Quantized(NamedTuple):
    """What a quantiser makes of latents.

    Attributes:
      latents: [B, F, D], sum of the codebook vectors in use; gradients pass straight through to the
        input.
      codes: int32 [B, F, K], all levels.
      commitment, codebook_loss: scalars.
      stats: {"perplexity": [K], "dead_codes": [K], "quantization_error": [K]}. Dead is the share of
        codes below the threshold of `ResidualVQ`, or not used in this batch by `FactorizedRVQ`.
    """

    latents: Array
    codes: Array
    commitment: Array
    codebook_loss: Array
    stats: dict[str, Array]


def draw_num_codebooks(key: Key, config: CodecConfig, batch: int) -> Int[Array, "B"]:
    """Quantiser dropout: with its probability a number of codebooks from the choices, else all of
    them.
    """
    choices = jnp.array(config.dropout_choices or range(1, config.num_codebooks + 1), jnp.int32)
    which, how_many = jax.random.split(key)
    dropped = jax.random.bernoulli(which, config.quantizer_dropout, (batch,))
    drawn = choices[jax.random.randint(how_many, (batch,), 0, len(choices))]
    return jnp.where(dropped, drawn, config.num_codebooks)


def kmeans(key: Key, x: Float[Array, "N D"], size: int, iterations: int) -> tuple[Array, Array]:
    """Lloyd's algorithm from random rows of `x`: centroids [size, D] and members of each [size].

    A centroid that loses all its members stays where it is. Fewer rows than centroids are drawn
    repeatedly.
    """
    count = x.shape[0]
    repeated = jax.random.permutation(key, jnp.arange(max(count, size)) % count)
    start = x[repeated[:size]]

    def refine(centroids: Array, _: None) -> tuple[Array, None]:
        members, sums = assignment_sums(x, nearest(x, centroids)[0], jnp.ones(count), size)
        means = sums / jnp.maximum(members, 1.0)[:, None]
        return jnp.where(members[:, None] > 0, means, centroids), None

    centroids, _ = jax.lax.scan(refine, start, None, length=iterations)
    members, _ = assignment_sums(x, nearest(x, centroids)[0], jnp.ones(count), size)
    return centroids, members


def perplexity(usage: Float[Array, "V"]) -> Array:
    """exp of the entropy of the empirical code distribution: V for uniform use, 1 for a single
    code.
    """
    share = usage / jnp.maximum(jnp.sum(usage), 1e-9)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-12)), 0.0)))


def _active(num_codebooks: Array | None, level: Array, batch: int) -> Array:
    """float32 [B]: 1 where an example uses this level."""
    if num_codebooks is None:
        return jnp.ones((batch,))
    return (level < num_codebooks).astype(jnp.float32)


class ResidualVQ(nn.Module):
    """RVQ whose codebooks are exponential moving averages of what is assigned to them (SoundStream,
    section III-C).

    The mutable collection "codebook" holds, stacked over levels: embedding [K, V, D], embedding_sum
    [K, V, D], cluster_size [K, V] and the flag `initialized`. In training a first batch initialises
    the codebooks by k-means (rng stream "codebook"), later ones move them, and codes used less than
    `dead_code_threshold` of uniform usage are replaced by random vectors of the batch. The
    commitment loss is the mean over the levels in use.
    """

    config: CodecConfig

    def setup(self) -> None:
        c = self.config
        shape = (c.num_codebooks, c.codebook_size, c.latent_dim)
        self.embedding = self.variable("codebook", "embedding", self._first_embedding, shape)
        self.embedding_sum = self.variable(
            "codebook", "embedding_sum", lambda: jnp.array(self.embedding.value)
        )
        self.cluster_size = self.variable("codebook", "cluster_size", jnp.ones, shape[:2])
        self.initialized = self.variable("codebook", "initialized", jnp.zeros, (), jnp.bool_)

    def _first_embedding(self, shape: tuple[int, ...]) -> Array:
        return jax.random.normal(self.make_rng("params"), shape) * shape[-1] ** -0.5

    def encode(self, latents: Float[Array, "B F D"], num_codebooks: int | None = None) -> Array:
        """Codes int32 [B, F, k] of the first `num_codebooks` levels (all by default)."""

        rows = latents.reshape(-1, latents.shape[-1]).astype(jnp.float32)
        codes, _ = residual_codes(rows, self.embedding.value[:num_codebooks])
        return codes.reshape(*latents.shape[:2], -1)

    def decode(self, codes: Int[Array, "B F k"]) -> Float[Array, "B F D"]:
        """Sum of the codebook vectors of the levels given."""
        embedding = self.embedding.value[: codes.shape[-1]]
        start = jnp.zeros((*codes.shape[:2], self.config.latent_dim))

        def level(total: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
            codes, embedding = item
            return total + embedding[codes], None

        return jax.lax.scan(level, start, (jnp.moveaxis(codes, -1, 0), embedding))[0]

    def __call__(
        self,
        latents: Float[Array, "B F D"],
        train: bool,
        num_codebooks: Int[Array, "B"] | None = None,
    ) -> Quantized:
        c = self.config
        batch, frames, width = latents.shape
        z = latents.astype(jnp.float32)
        rows = jax.lax.stop_gradient(z).reshape(-1, width)
        train = train and not self.is_initializing()
        keys = jax.random.split(
            self.make_rng("codebook") if train else jax.random.key(0), c.num_codebooks
        )
        initialized = self.initialized.value

        def level(residual: Array, item: tuple) -> tuple[Array, dict[str, Array]]:
            index, key, embedding, embedding_sum, cluster_size = item
            active = _active(num_codebooks, index, batch)
            book = (embedding, embedding_sum, cluster_size)
            if train:
                book = jax.lax.cond(
                    initialized, lambda: book, lambda: self._kmeans_book(key, residual)
                )
            # What a batch is quantised with is what the decoder will see of it: moved only
            # afterwards.
            codes, distance = nearest(residual, book[0])
            quantized = book[0][codes]
            weights = jnp.repeat(active, frames)
            members, sums = assignment_sums(residual, codes, weights, c.codebook_size)
            if train:
                moved, dead = self._move_book(key, book, members, sums, residual)
            else:
                moved, dead = book, self._dead(book[2])
            out = {
                "quantized": quantized.reshape(batch, frames, width),
                "codes": codes.reshape(batch, frames),
                "active": active,
                "perplexity": perplexity(members),
                "dead_codes": jnp.mean(dead.astype(jnp.float32)),
                "distance": distance + jnp.sum(jnp.square(residual), axis=-1),
                "book": moved,
            }
            return residual - quantized, out

        items = (
            jnp.arange(c.num_codebooks),
            keys,
            self.embedding.value,
            self.embedding_sum.value,
            self.cluster_size.value,
        )
        _, out = jax.lax.scan(level, rows, items)
        if train:
            (self.embedding.value, self.embedding_sum.value, self.cluster_size.value) = out["book"]
            self.initialized.value = jnp.ones((), jnp.bool_)
        return _straight_through(z, out, latents.dtype)

    def _kmeans_book(self, key: Key, residual: Array) -> tuple[Array, Array, Array]:
        c = self.config
        centroids, members = kmeans(
            jax.random.fold_in(key, 1), residual, c.codebook_size, c.kmeans_iterations
        )
        return centroids, centroids * members[:, None], members

    def _dead(self, cluster_size: Array) -> Array:
        return cluster_size < self.config.dead_code_threshold * jnp.mean(cluster_size)

    def _move_book(
        self, key: Key, book: tuple, members: Array, sums: Array, residual: Array
    ) -> tuple[tuple[Array, Array, Array], Array]:
        """EMA update of (embedding, embedding_sum, cluster_size), then dead codes from random rows
        of the batch.
        """
        decay, size = self.config.ema_decay, self.config.codebook_size
        cluster_size = decay * book[2] + (1.0 - decay) * members
        embedding_sum = decay * book[1] + (1.0 - decay) * sums
        total = jnp.sum(cluster_size)
        smoothed = (cluster_size + LAPLACE) / (total + size * LAPLACE) * total
        embedding = embedding_sum / jnp.maximum(smoothed, LAPLACE)[:, None]

        dead = self._dead(cluster_size)
        picks = jax.random.randint(jax.random.fold_in(key, 2), (size,), 0, residual.shape[0])
        born, fresh = dead[:, None], residual[picks]
        mean_size = jnp.mean(cluster_size)
        embedding = jnp.where(born, fresh, embedding)
        embedding_sum = jnp.where(born, fresh * mean_size, embedding_sum)
        return (embedding, embedding_sum, jnp.where(dead, mean_size, cluster_size)), dead


def _straight_through(z: Array, out: dict[str, Array], dtype: Any) -> Quantized:
    """Sums the levels in use; commitment is the mean of |r_k - e_k|^2 over them, differentiable by
    z.
    """
    active = out["active"]
    used = out["quantized"] * active[:, :, None, None]
    total = jnp.sum(used, axis=0)
    # r_k = z - (what the levels before took): only z carries a gradient.
    before = jnp.cumsum(out["quantized"], axis=0) - out["quantized"]
    errors = jnp.mean(jnp.square(z[None] - before - out["quantized"]), axis=(2, 3))
    commitment = jnp.sum(errors * active) / jnp.sum(active)
    stats = {
        "perplexity": out["perplexity"],
        "dead_codes": out["dead_codes"],
        "quantization_error": jnp.mean(out["distance"], axis=-1) / z.shape[-1],
    }
    latents = (z + jax.lax.stop_gradient(total - z)).astype(dtype)
    codes = jnp.moveaxis(out["codes"], 0, -1)
    return Quantized(latents, codes, commitment, jnp.zeros(()), stats)


def l2_normalize(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class FactorizedRVQ(nn.Module):
    """DAC's RVQ: each level projects to `codebook_dim`, compares directions, and projects the code
    vector back.

    All parameters are trained by gradient: codebook loss |sg(p) - e|^2 and commitment loss |p -
    sg(e)|^2 with p the projected residual, each a mean over time and dimensions, summed over the
    levels in use and averaged over the batch (Kumar et al. 2023).
    """

    config: CodecConfig

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))
        shapes = {
            "in": (c.num_codebooks, c.latent_dim, c.codebook_dim),
            "out": (c.num_codebooks, c.codebook_dim, c.latent_dim),
        }
        levels = {}
        for side, shape in shapes.items():
            kernel = self.param(f"{side}_kernel", init, shape)
            levels[f"{side}_bias"] = self.param(
                f"{side}_bias", nn.initializers.zeros, (c.num_codebooks, shape[-1])
            )
            if c.norm == "weight":
                scale = self.param(
                    f"{side}_scale", lambda _, k=kernel: jnp.sqrt(jnp.sum(k**2, axis=1))
                )
                kernel = weight_norm(kernel, scale, axes=(1,))
            levels[f"{side}_kernel"] = kernel
        levels["codebook"] = self.param(
            "codebook",
            nn.initializers.normal(1.0),
            (c.num_codebooks, c.codebook_size, c.codebook_dim),
        )
        self.levels = levels

    def encode(self, latents: Float[Array, "B F D"], num_codebooks: int | None = None) -> Array:
        """Codes int32 [B, F, k] of the first `num_codebooks` levels (all by default)."""

        def level(residual: Array, params: dict) -> tuple[Array, Array]:
            _, codes, _, vectors = _project_and_match(residual, params)
            return residual - _project_out(vectors, params), codes

        levels = jax.tree.map(lambda p: p[:num_codebooks], dict(self.levels))
        _, codes = jax.lax.scan(level, latents.astype(jnp.float32), levels)
        return jnp.moveaxis(codes, 0, -1)

    def decode(self, codes: Int[Array, "B F k"]) -> Float[Array, "B F D"]:
        levels = jax.tree.map(lambda p: p[: codes.shape[-1]], dict(self.levels))
        start = jnp.zeros((*codes.shape[:2], self.config.latent_dim))

        def level(total: Array, item: tuple[Array, dict]) -> tuple[Array, None]:
            codes, params = item
            return total + _project_out(params["codebook"][codes], params), None

        return jax.lax.scan(level, start, (jnp.moveaxis(codes, -1, 0), levels))[0]

    def __call__(
        self,
        latents: Float[Array, "B F D"],
        train: bool,
        num_codebooks: Int[Array, "B"] | None = None,
    ) -> Quantized:
        del train  # Nothing moves but by gradient.
        c, batch = self.config, latents.shape[0]

        def level(carry: tuple, item: tuple[Array, dict]) -> tuple[tuple, dict[str, Array]]:
            residual, total = carry
            index, params = item
            active = _active(num_codebooks, index, batch)
            projected, codes, distance, vectors = _project_and_match(residual, params)
            sg = jax.lax.stop_gradient
            through = projected + sg(vectors - projected)
            quantized = _project_out(through, params)
            total = total + quantized * active[:, None, None]
            usage = jnp.zeros(c.codebook_size).at[codes].add(active[:, None])
            out = {
                "codes": codes,
                "commitment": _example_mse(projected, sg(vectors)) * active,
                "codebook_loss": _example_mse(vectors, sg(projected)) * active,
                "distance": distance,
                "perplexity": perplexity(usage),
                "dead_codes": jnp.mean(usage == 0.0),
                "quantization_error": jnp.mean(jnp.square(residual - quantized)),
            }
            return (residual - quantized, total), out

        z = latents.astype(jnp.float32)
        items = (jnp.arange(c.num_codebooks), dict(self.levels))
        (_, total), out = jax.lax.scan(level, (z, jnp.zeros_like(z)), items)
        stats = {k: out[k] for k in ("perplexity", "dead_codes", "quantization_error")}
        return Quantized(
            total.astype(latents.dtype),
            jnp.moveaxis(out["codes"], 0, -1),
            jnp.sum(jnp.mean(out["commitment"], axis=-1)),
            jnp.sum(jnp.mean(out["codebook_loss"], axis=-1)),
            stats,
        )


def _project_and_match(residual: Array, params: dict) -> tuple[Array, Array, Array, Array]:
    """Projected residual [B, F, d], codes [B, F], distances [B, F], code vectors [B, F, d]."""
    projected = residual @ params["in_kernel"] + params["in_bias"][None, None]
    rows = l2_normalize(projected).reshape(-1, projected.shape[-1])
    codes, distance = nearest(rows, l2_normalize(params["codebook"]))
    codes, distance = (a.reshape(projected.shape[:2]) for a in (codes, distance))
    return projected, codes, distance, params["codebook"][codes]


def _project_out(vectors: Array, params: dict) -> Array:
    return vectors @ params["out_kernel"] + params["out_bias"][None, None]


def _example_mse(a: Array, b: Array) -> Array:
    return jnp.mean(jnp.square(a - b), axis=(1, 2))
