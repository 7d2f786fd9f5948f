"""Cached decoding: weights arranged for it, prefill of a prompt, one step.

On a CPU a step costs what it takes to read every weight once. XLA reads a matrix at memory speed at
batch 1 to 16 when it stands on the left with its output rows contiguous and the activations are
columns, `W [out, in] @ x [in, N]`; with activations as rows the same product runs at half that at
batch 8. So weights are kept as [out, in], queries, keys and values in one matrix and all heads in
one, layers unrolled (a scan over stacked weights copies each slice), and activations stay [D, N]
from the embedding to the logits. The cache is one array a layer, [B, G, C, hd], updated in place.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mgen.lm.model import LMConfig, unstack_layers
from mgen.nn.attention import cached_attention
from mgen.nn.embed import rope, sinusoidal, sum_rows
from mgen.nn.transformer import ACTIVATIONS
from mgen.typing import Array, Bool, Float, Int, Params

Cache = list[dict[str, Array]]
Matrix = dict[str, Array]  # "w" [out, in], and "b" [out, 1] where there is a bias


@flax.struct.dataclass
class Condition:
    """What a batch is conditioned on; a pytree, each part None where the model has no such input.

    Attributes:
      attributes: int32 [B, A] categorical fields, 0 unknown.
      vectors: float32 [B, C, W] for cross-attention.
      mask: bool [B, C], True where `vectors` holds something.
    """

    attributes: Array | None = None
    vectors: Array | None = None
    mask: Array | None = None


def arrange(config: LMConfig, params: Params) -> Params:
    """Weights of `LM` (scanned or not) as decoding reads them; float32."""

    def matrix(*layers: Params, inputs: int = 1) -> Matrix:
        """One [out, in] matrix of several layers that read the same input of `inputs` axes."""
        kernels = [layer["kernel"] for layer in layers]
        flat = [k.reshape(int(np.prod(k.shape[:inputs])), -1) for k in kernels]
        out = {"w": jnp.concatenate(flat, axis=1).T}
        if "bias" in layers[0]:
            out["b"] = jnp.concatenate([layer["bias"].reshape(-1, 1) for layer in layers])
        return out

    def norm(layer: Params) -> Params:
        return {name: value[:, None] for name, value in layer.items()}

    def block(layer: Params) -> Params:
        attention = layer["attention"]
        out = {
            "attention_norm": norm(layer["attention_norm"]),
            "qkv": matrix(attention["query"], attention["key"], attention["value"]),
            "out": matrix(attention["out"], inputs=2),
            "ff_norm": norm(layer["ff_norm"]),
            "ff_in": matrix(layer["ff_in"]),
            "ff_out": matrix(layer["ff_out"]),
        }
        if "cross_attention" in layer:
            cross = layer["cross_attention"]
            out["cross_attention_norm"] = norm(layer["cross_attention_norm"])
            out["cross_query"] = matrix(cross["query"])
            out["cross_kv"] = matrix(cross["key"], cross["value"])
            out["cross_out"] = matrix(cross["out"], inputs=2)
        return out

    trunk = unstack_layers(params)["transformer"]
    weights = {
        "embed": params["embed"]["embedding"],
        "layers": [block(trunk[f"layers_{i}"]) for i in range(config.layers)],
        "heads": matrix(params["heads"]),
    }
    if "attributes" in params:
        weights["attributes"] = params["attributes"]["embedding"]
    if "condition_projection" in params:
        weights["condition_projection"] = matrix(params["condition_projection"])
    if "final_norm" in trunk:
        weights["final_norm"] = norm(trunk["final_norm"])
    return weights


def linear(matrix: Matrix, x: Float[Array, "D N"]) -> Float[Array, "E N"]:
    y = matrix["w"] @ x
    return y + matrix["b"] if "b" in matrix else y


def normalise(config: LMConfig, layer: Params, x: Float[Array, "D N"]) -> Float[Array, "D N"]:
    """Layer or root-mean-square norm over the first axis."""
    epsilon = config.transformer.norm_epsilon
    if config.norm == "layer":
        x = x - x.mean(axis=0, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=0, keepdims=True) + epsilon)
    x = x * layer["scale"]
    return x + layer["bias"] if "bias" in layer else x


def split_heads(x: Float[Array, "E N"], batch: int, width: int) -> Float[Array, "B H L hd"]:
    """Columns in (batch, position) order to one matrix a head."""
    heads = x.reshape(x.shape[0] // width, width, batch, -1)
    return heads.transpose(2, 0, 3, 1)


def merge_heads(x: Float[Array, "B H L hd"]) -> Float[Array, "E N"]:
    """Inverse of `split_heads`."""
    return x.transpose(1, 3, 0, 2).reshape(x.shape[1] * x.shape[3], -1)


def grow_cache(cache: Cache, length: int) -> Cache:
    """The cache with room for `length` positions."""

    def grow(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    return [entry | {"k": grow(entry["k"]), "v": grow(entry["v"])} for entry in cache]


def init_cache(
    config: LMConfig, weights: Params, condition: Condition, batch: int, length: int
) -> Cache:
    """An empty cache for `length` positions, with the keys and values of the condition."""
    trunk = config.transformer
    shape = (batch, trunk.kv_heads, length, config.head_dim)
    cache = [{"k": jnp.zeros(shape), "v": jnp.zeros(shape)} for _ in range(config.layers)]
    if not config.condition_width or condition.vectors is None:
        return cache
    memory = condition.vectors.reshape(-1, condition.vectors.shape[-1]).T  # [W, B C]
    if "condition_projection" in weights:
        memory = linear(weights["condition_projection"], memory)
    if condition.mask is not None:
        memory = memory * condition.mask.reshape(1, -1)
    for layer, entry in zip(weights["layers"], cache):
        kv = split_heads(linear(layer["cross_kv"], memory), batch, config.head_dim)
        entry["cross_k"], entry["cross_v"] = jnp.split(kv, 2, axis=1)
    return cache


def forward(
    config: LMConfig,
    weights: Params,
    cache: Cache,
    condition: Condition,
    tokens: Int[Array, "B L K"],
    start: Int[Array, ""] | int,
) -> tuple[Float[Array, "D N"], Cache]:
    """Final hidden columns (before the heads) of L new positions, and the cache with them in it.

    Columns are in (batch, position) order. A prefill has `start` = 0, a Python int, and attends to
    the new positions only; any other call has L = 1 and attends to the cache.
    """
    positions = start + jnp.arange(tokens.shape[1])
    x = embed(config, weights, condition, tokens, positions)
    grown = []
    for layer, entry in zip(weights["layers"], cache):
        grown.append(entry)

        def attend(h: Array, layer: Params = layer) -> Array:
            out, grown[-1] = self_attention(config, layer, grown[-1], h, start, positions)
            return out

        def attend_condition(h: Array, layer: Params = layer) -> Array:
            return cross_attention(config, layer, grown[-1], h, condition.mask)

        def feed_forward(h: Array, layer: Params = layer) -> Array:
            hidden = ACTIVATIONS[config.activation](linear(layer["ff_in"], h))
            return linear(layer["ff_out"], hidden)

        x = residual(config, layer["attention_norm"], x, attend)
        if "cross_k" in entry:
            x = residual(config, layer["cross_attention_norm"], x, attend_condition)
        x = residual(config, layer["ff_norm"], x, feed_forward)
    if "final_norm" in weights:
        x = normalise(config, weights["final_norm"], x)
    return x, grown


def embed(
    config: LMConfig,
    weights: Params,
    condition: Condition,
    tokens: Int[Array, "B L K"],
    positions: Int[Array, " L"],
) -> Float[Array, "D N"]:
    x = sum_rows(weights["embed"], tokens, config.token_sizes)  # [B, L, D]
    if config.attribute_sizes and condition.attributes is not None:
        table, fields = weights["attributes"], condition.attributes
        x = x + sum_rows(table, fields, config.attribute_sizes)[:, None]
    if config.positions == "sinusoidal":
        x = x + sinusoidal(positions, config.dim)[None]
    return x.reshape(-1, config.dim).T


def residual(
    config: LMConfig, norm: Params, x: Float[Array, "D N"], layer: Callable[[Array], Array]
) -> Float[Array, "D N"]:
    if config.norm_position == "pre":
        return x + layer(normalise(config, norm, x))
    return normalise(config, norm, x + layer(x))


def self_attention(
    config: LMConfig,
    layer: Params,
    entry: dict[str, Array],
    x: Float[Array, "D N"],
    start: Int[Array, ""] | int,
    positions: Int[Array, " L"],
) -> tuple[Float[Array, "D N"], dict[str, Array]]:
    """Attention to the new positions (prefill) or the cache (step), and the grown cache entry."""
    batch, groups, capacity, width = entry["k"].shape
    qkv = split_heads(linear(layer["qkv"], x), batch, width)
    query, key, value = jnp.split(qkv, [config.heads, config.heads + groups], axis=1)
    if config.positions == "rope":
        query, key = rope(query, positions), rope(key, positions)
    at = (0, 0, start, 0)
    entry = entry | {
        "k": jax.lax.dynamic_update_slice(entry["k"], key, at),
        "v": jax.lax.dynamic_update_slice(entry["v"], value, at),
    }
    if isinstance(start, int):
        capacity = len(positions)
    else:
        key, value = entry["k"], entry["v"]
    visible = jnp.arange(capacity)[None] <= positions[:, None]  # [L, C]
    out = cached_attention(query, key, value, visible[None])
    return linear(layer["out"], merge_heads(out)), entry


def cross_attention(
    config: LMConfig,
    layer: Params,
    entry: dict[str, Array],
    x: Float[Array, "D N"],
    mask: Bool[Array, "B C"] | None,
) -> Float[Array, "D N"]:
    batch = entry["cross_k"].shape[0]
    query = split_heads(linear(layer["cross_query"], x), batch, config.head_dim)
    mask = None if mask is None else mask[:, None]
    out = cached_attention(query, entry["cross_k"], entry["cross_v"], mask)
    return linear(layer["cross_out"], merge_heads(out))


def step(
    config: LMConfig,
    weights: Params,
    cache: Cache,
    condition: Condition,
    tokens: Int[Array, "B K"],
    index: Int[Array, ""],
) -> tuple[Float[Array, "B K V"], Cache]:
    """Logits of position `index` from its input column and the cache of the positions before it."""
    x, cache = forward(config, weights, cache, condition, tokens[:, None], index)
    # The barrier keeps XLA from folding the transpose into the product, which then runs ten times
    # slower on a CPU.
    logits = jax.lax.optimization_barrier(linear(weights["heads"], x))  # [K V, B]
    return logits.T.reshape(-1, config.num_codebooks, config.codebook_size), cache
