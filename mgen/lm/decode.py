"""Cached decoding: weights arranged for it, prefill of a prompt, one step.

On a CPU a step costs what it takes to read every weight once. XLA reads a matrix at memory speed at batch 1 to 16 when it
stands on the left with its output rows contiguous and the activations are columns, `W [out, in] @ x [in, N]`; with
activations as rows the same product runs at half that at batch 8. So weights are kept as [out, in], queries, keys and values
in one matrix and all heads in one, layers unrolled (a scan over stacked weights copies each slice), and
activations stay [D, N] from the embedding to the logits. The cache is one array a layer, [B, G, C, hd], updated in place.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mgen.lm.model import LMConfig, unstack_layers
from mgen.nn.attention import cached_attention
from mgen.nn.embed import offsets, rope, sinusoidal
from mgen.nn.transformer import ACTIVATIONS, NORM_EPSILON
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
    if config.norm == "layer":
        x = x - x.mean(axis=0, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=0, keepdims=True) + NORM_EPSILON)
    x = x * layer["scale"]
    return x + layer["bias"] if "bias" in layer else x


def split_heads(x: Float[Array, "E N"], batch: int, width: int) -> Float[Array, "B H L hd"]:
    """Columns in (batch, position) order to one matrix a head."""
    heads = x.reshape(x.shape[0] // width, width, batch, -1)
    return heads.transpose(2, 0, 3, 1)


def merge_heads(x: Float[Array, "B H L hd"]) -> Float[Array, "E N"]:
    """Inverse of `split_heads`."""
    return x.transpose(1, 3, 0, 2).reshape(x.shape[1] * x.shape[3], -1)


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
    """Final hidden columns (before the heads) of L new positions that begin at `start`, and the grown cache.

    A prefill has `start` = 0, a static zero, and attends to the new positions only; a step has L = 1.
    """
    batch, length, _ = tokens.shape
    prefill = isinstance(start, int)
    positions = start + jnp.arange(length)
    x = weights["embed"][tokens + offsets(config.token_sizes)].sum(axis=-2)  # [B, L, D]
    if config.attribute_sizes and condition.attributes is not None:
        x = x + attribute_embedding(config, weights, condition.attributes)[:, None]
    if config.positions == "sinusoidal":
        x = x + sinusoidal(positions, config.dim)
    x = x.reshape(-1, config.dim).T
    capacity = length if prefill else cache[0]["k"].shape[2]
    visible = jnp.arange(capacity) <= positions[:, None]  # [L, C]
    cross_mask = None if condition.mask is None else condition.mask[:, None]
    grown = []
    for layer, entry in zip(weights["layers"], cache):

        def attend(h: Array, layer: Params = layer, entry: dict[str, Array] = entry) -> Array:
            qkv = split_heads(linear(layer["qkv"], h), batch, config.head_dim)
            query, key, value = jnp.split(
                qkv, [config.heads, config.heads + entry["k"].shape[1]], axis=1
            )
            if config.positions == "rope":
                query, key = rope(query, positions), rope(key, positions)
            at = (0, 0, start, 0)
            entry = entry | {
                "k": jax.lax.dynamic_update_slice(entry["k"], key, at),
                "v": jax.lax.dynamic_update_slice(entry["v"], value, at),
            }
            grown.append(entry)
            if not prefill:
                key, value = entry["k"], entry["v"]
            out = cached_attention(query, key, value, visible[None])
            return linear(layer["out"], merge_heads(out))

        def attend_condition(
            h: Array, layer: Params = layer, entry: dict[str, Array] = entry
        ) -> Array:
            query = split_heads(linear(layer["cross_query"], h), batch, config.head_dim)
            out = cached_attention(query, entry["cross_k"], entry["cross_v"], cross_mask)
            return linear(layer["cross_out"], merge_heads(out))

        def feed_forward(h: Array, layer: Params = layer) -> Array:
            hidden = ACTIVATIONS[config.activation](linear(layer["ff_in"], h))
            return linear(layer["ff_out"], hidden)

        sublayers: list[tuple[str, Any]] = [("attention_norm", attend)]
        if "cross_k" in entry:
            sublayers.append(("cross_attention_norm", attend_condition))
        for name, sublayer in [*sublayers, ("ff_norm", feed_forward)]:
            if config.norm_position == "pre":
                x = x + sublayer(normalise(config, layer[name], x))
            else:
                x = normalise(config, layer[name], x + sublayer(x))
    if "final_norm" in weights:
        x = normalise(config, weights["final_norm"], x)
    return x, grown


def attribute_embedding(
    config: LMConfig, weights: Params, attributes: Int[Array, "B A"]
) -> Float[Array, "B D"]:
    return weights["attributes"][attributes + offsets(config.attribute_sizes)].sum(axis=-2)


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
    logits = linear(weights["heads"], x)  # [K V, B]
    return logits.T.reshape(-1, config.num_codebooks, config.codebook_size), cache
