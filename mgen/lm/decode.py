"""Cached decoding: weights arranged for it, prefill of a prompt, one step.

On a CPU a step costs what it takes to read every weight once. XLA reads a matrix at memory speed at
batch 1 to 16 when it stands on the left with its output rows contiguous and the activations are
columns, `W [out, in] @ x [in, N]`; with activations as rows the same product runs at half that at
batch 8. So weights are kept as [out, in], queries, keys and values in one matrix and all heads in
one, layers unrolled (a scan over stacked weights copies each slice), and activations stay [D, N]
from the embedding to the logits. The cache is one array a layer, [B, G, C, hd], updated in place.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.kernels.decode_attention import cached_attention, decode_attention
from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig, rows
from mgen.lm.model import inside, unstack_layers
from mgen.nn.embed import RelativeBias, rope, sinusoidal, sum_rows, take_rows
from mgen.nn.masks import visible
from mgen.nn.transformer import ACTIVATIONS, TransformerConfig
from mgen.typing import Array, Bool, Float, Int, Params

Cache = list[dict[str, Array]]
# "w" [out, in], "b" [out, 1] where there is a bias, "scale" [out, 1] where w is int8.
Matrix = dict[str, Array]
BLOCK = 2**19  # weights that a CPU converts at a time


def arrange(config: LMConfig, params: Params) -> Params:
    """Weights of `LM` (scanned or not) as decoding reads them; float32."""
    params = jax.tree.map(lambda x: x.astype(jnp.float32), unstack_layers(params))
    weights = {
        name: value["embedding"]
        for name, value in params.items()
        if name in ("embed", "attributes") or name.startswith(("prefix_", "aligned_"))
    }
    for name in params:
        if "_projection" in name:
            weights[name] = _matrix(params[name])
    for name in ("transformer", "depth"):
        if name in params:
            weights[name] = _stack(params[name])
    kernel = params["heads"]["kernel"]  # [K, D, V]
    weights["heads"] = {"w": kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1])}
    if config.bias:
        weights["heads"]["b"] = params["heads"]["bias"].reshape(-1, 1)
    return weights


def _stack(params: Params) -> Params:
    depth = sum(name.startswith("layers_") for name in params)
    out = {"layers": [_block(params[f"layers_{i}"]) for i in range(depth)]}
    if "final_norm" in params:
        out["final_norm"] = _norm(params["final_norm"])
    if "relative_bias" in params:
        out["relative_bias"] = params["relative_bias"]["embedding"]
    return out


def _block(layer: Params) -> Params:
    attention = layer["attention"]
    out = {
        "attention_norm": _norm(layer["attention_norm"]),
        "qkv": _matrix(attention["query"], attention["key"], attention["value"]),
        "out": _matrix(attention["out"], inputs=2),
        "ff_norm": _norm(layer["ff_norm"]),
        **{name: _matrix(layer[name]) for name in ("ff_in", "ff_gate", "ff_out") if name in layer},
    }
    if "cross_attention" in layer:
        cross = layer["cross_attention"]
        out["cross_attention_norm"] = _norm(layer["cross_attention_norm"])
        out["cross_query"] = _matrix(cross["query"])
        out["cross_kv"] = _matrix(cross["key"], cross["value"])
        out["cross_out"] = _matrix(cross["out"], inputs=2)
    return out


def _matrix(*layers: Params, inputs: int = 1) -> Matrix:
    """One [out, in] matrix of several layers that read the same input of `inputs` axes."""
    kernels = [layer["kernel"] for layer in layers]
    flat = [k.reshape(int(np.prod(k.shape[:inputs])), -1) for k in kernels]
    out = {"w": jnp.concatenate(flat, axis=1).T}
    if "bias" in layers[0]:
        out["b"] = jnp.concatenate([layer["bias"].reshape(-1, 1) for layer in layers])
    return out


def quantized(weights: Params) -> Params:
    """Weights of `arrange` with every matrix as int8 (Dettmers et al. 2022, "LLM.int8()", section
    2.1, of weights alone): w is about "w" * "scale", each output row's largest entry 127.

    A quarter of the bytes of float32; embeddings, norms and biases stay as they are.
    """

    def matrix(node: Any) -> bool:
        return isinstance(node, dict) and "w" in node

    def quantize(node: Any) -> Any:
        if not matrix(node):
            return node
        whole, scale = _whole(node["w"], 1)
        return node | {"w": whole.astype(jnp.int8), "scale": scale}

    return jax.tree.map(quantize, weights, is_leaf=matrix)


def int8_values(params: Params) -> Params:
    """Parameters of `LM`, scanned or not, whose kernels have the values that `quantized` gives
    them: a loss with these is that of int8 decoding."""

    def value(path: tuple[Any, ...], x: Array) -> Array:
        *_, layer, name = (key.key for key in path)
        if name != "kernel":
            return x
        # [..., in, out], of attention [..., in, H, hd] and [..., H, hd, out].
        inputs = {"query": (-3,), "key": (-3,), "value": (-3,), "out": (-3, -2)}.get(layer, (-2,))
        whole, scale = _whole(x.astype(jnp.float32), inputs)
        return (whole * scale).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(value, params)


def _whole(w: Array, inputs: int | tuple[int, ...]) -> tuple[Array, Array]:
    """Whole numbers from -127 to 127 and what they are to be scaled by."""
    scale = jnp.abs(w).max(axis=inputs, keepdims=True) / 127.0
    # A row of zeros has no scale.
    return jnp.round(w / jnp.where(scale > 0, scale, 1.0)), scale


def _norm(layer: Params) -> Params:
    return {name: value[:, None] for name, value in layer.items()}


def linear(matrix: Matrix, x: Float[Array, "D N"]) -> Float[Array, "E N"]:
    w = matrix["w"]
    if "scale" in matrix:
        y = jax.lax.platform_dependent(w, x, cpu=_by_blocks, default=_converted) * matrix["scale"]
    else:
        y = _converted(w, x)
    return y + matrix["b"] if "b" in matrix else y


def _converted(w: Array, x: Float[Array, "D N"]) -> Float[Array, "E N"]:
    return w.astype(x.dtype) @ x


def _by_blocks(w: Array, x: Float[Array, "D N"]) -> Float[Array, "E N"]:
    """A few rows at a time: a CPU's compiler keeps all that was converted, in memory, and reads it
    from there as it would have read float32 weights; a block stays in cache."""
    count = -(-w.size // BLOCK)
    rows = -(-w.shape[0] // count)

    def fill(index: Array, y: Float[Array, "E N"]) -> Float[Array, "E N"]:
        # The last block begins early where it would end late, as slices do.
        block = jax.lax.dynamic_slice_in_dim(w, index * rows, rows)
        return jax.lax.dynamic_update_slice_in_dim(y, _converted(block, x), index * rows, 0)

    return jax.lax.fori_loop(0, count, fill, jnp.empty((w.shape[0], x.shape[1]), x.dtype))


def normalise(
    stack: TransformerConfig, layer: Params, x: Float[Array, "D N"]
) -> Float[Array, "D N"]:
    """Layer or root-mean-square norm over the first axis."""
    if stack.norm == "layer":
        x = x - x.mean(axis=0, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=0, keepdims=True) + stack.norm_epsilon)
    x = x * layer["scale"]
    return x + layer["bias"] if "bias" in layer else x


def split_heads(x: Float[Array, "E N"], batch: int, width: int) -> Float[Array, "B H L hd"]:
    """Columns in (batch, position) order to one matrix a head."""
    heads = x.reshape(x.shape[0] // width, width, batch, -1)
    return heads.transpose(2, 0, 3, 1)


def merge_heads(x: Float[Array, "B H L hd"]) -> Float[Array, "E N"]:
    """Inverse of `split_heads`."""
    return x.transpose(1, 3, 0, 2).reshape(x.shape[1] * x.shape[3], -1)


def as_columns(x: Float[Array, "B L D"]) -> Float[Array, "D N"]:
    """Columns in (batch, position) order."""
    return x.reshape(-1, x.shape[-1]).T


def init_cache(stack: TransformerConfig, batch: int, length: int) -> Cache:
    """An empty cache for `length` positions."""
    width = stack.head_dim or stack.dim // stack.heads
    shape = (batch, stack.kv_heads, length, width)
    return [{"k": jnp.zeros(shape), "v": jnp.zeros(shape)} for _ in range(stack.layers)]


def grow_cache(cache: Cache, length: int) -> Cache:
    """The cache with room for `length` positions."""

    def grow(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    return [entry | {"k": grow(entry["k"]), "v": grow(entry["v"])} for entry in cache]


def remember_condition(
    config: LMConfig, weights: Params, cache: Cache, condition: Condition
) -> Cache:
    """The cache with the keys and values of the vectors for cross-attention."""
    vectors = condition.vectors
    if not config.condition_width or vectors is None:
        return cache
    memory = as_columns(vectors)
    if "condition_projection" in weights:
        memory = linear(weights["condition_projection"], memory)
    if condition.mask is not None:
        memory = memory * condition.mask.reshape(1, -1)
    remembered = []
    for layer, entry in zip(weights["transformer"]["layers"], cache):
        kv = split_heads(linear(layer["cross_kv"], memory), len(vectors), config.head_dim)
        key, value = jnp.split(kv, 2, axis=1)
        remembered.append(entry | {"cross_k": key, "cross_v": value})
    return remembered


def front(config: LMConfig, weights: Params, condition: Condition) -> Float[Array, "B N D"] | None:
    """Embedded inputs before the target; None where there are none."""
    parts = []
    masks = condition.front_mask or (None,) * len(condition.front)
    for i, (x, mask) in enumerate(zip(condition.front, masks)):
        if f"front_projection_{i}" in weights:
            columns = linear(weights[f"front_projection_{i}"], as_columns(x))
            x = columns.T.reshape(*x.shape[:2], config.dim)
        parts.append(x if mask is None else x * mask[..., None])
    for i, codes in enumerate(condition.prefix):
        embedded = take_rows(weights[f"prefix_{i}"], codes, rows(config.prefix[i]))
        parts.append(embedded.reshape(codes.shape[0], -1, config.dim))
    return jnp.concatenate(parts, axis=1) if parts else None


def target(
    config: LMConfig,
    weights: Params,
    condition: Condition,
    tokens: Int[Array, "B L S"],
    slots: Int[Array, "#B L S"],
    frames: Int[Array, "#B L"],
) -> Float[Array, "B L D"]:
    """Embedded inputs of positions of the target.

    Args:
      slots: the codebook of each token.
      frames: the row of `condition.aligned` that is added.
    """
    x = take_rows(weights["embed"], tokens, rows(config.sizes), slots).sum(axis=-2)
    for i, aligned in enumerate(condition.aligned):
        own = jnp.take_along_axis(aligned, frames[..., None], axis=1)
        x = x + sum_rows(weights[f"aligned_{i}"], own, rows(config.aligned[i]))
    if config.attribute_sizes and condition.attributes is not None:
        fields = sum_rows(weights["attributes"], condition.attributes, config.attribute_sizes)
        x = x + fields[:, None]
    return x


def forward(
    stack: TransformerConfig,
    weights: Params,
    cache: Cache,
    x: Float[Array, "B L D"],
    positions: Int[Array, "#B L"],
    start: Int[Array, ""] | int,
    condition_mask: Bool[Array, "B C"] | None = None,
) -> tuple[Float[Array, "D N"], Cache]:
    """Output columns of L new positions, and the cache with them in it.

    Columns are in (batch, position) order.

    Args:
      weights: "transformer" or "depth" of `arrange`.
      positions: of each example's own sequence; negative ones are filler that nobody sees.
      start: where the new positions stand in the cache. A prefill has 0, a Python int, and attends
        to the new positions only; any other call attends to the cache.
    """
    batch = x.shape[0]
    x = as_columns(x)
    seen, bias = _seen(stack, weights, cache[0]["k"].shape[2], positions, start)
    grown = []
    for layer, entry in zip(weights["layers"], cache):
        grown.append(entry)

        def attend(h: Array, layer: Params = layer) -> Array:
            out, grown[-1] = self_attention(
                stack, layer, grown[-1], h, start, positions, seen, bias
            )
            return out

        def attend_condition(h: Array, layer: Params = layer) -> Array:
            return cross_attention(layer, grown[-1], h, batch, condition_mask)

        def feed_forward(h: Array, layer: Params = layer) -> Array:
            hidden, activation = linear(layer["ff_in"], h), ACTIVATIONS[stack.activation]
            if stack.gated:
                return linear(layer["ff_out"], hidden * activation(linear(layer["ff_gate"], h)))
            return linear(layer["ff_out"], activation(hidden))

        x = residual(stack, layer["attention_norm"], x, attend)
        if "cross_k" in entry:
            x = residual(stack, layer["cross_attention_norm"], x, attend_condition)
        x = residual(stack, layer["ff_norm"], x, feed_forward)
    if "final_norm" in weights:
        x = normalise(stack, weights["final_norm"], x)
    return x, grown


def _seen(
    stack: TransformerConfig,
    weights: Params,
    capacity: int,
    positions: Int[Array, "#B L"],
    start: Int[Array, ""] | int,
) -> tuple[Bool[Array, "#B L C"], Float[Array, "#B H L C"] | None]:
    """Which of the C keys each query sees, and the bias of relative positions."""
    if isinstance(start, int):
        capacity = positions.shape[1]
    # Every key's position in its own sequence: keys and positions run in step.
    keys = positions[:, :1] + (jnp.arange(capacity) - start)[None]  # [B, C]
    seen = visible(positions[:, :, None], keys[:, None], stack.window, stack.sink)
    seen = seen & (keys >= 0)[:, None]
    if not stack.relative_buckets:
        return seen, None
    shape = stack.relative_buckets, stack.relative_distance, stack.heads
    bucket = RelativeBias(*shape, bidirectional=False).bucket(-np.arange(capacity))
    back = positions[:, :, None] - keys[:, None]
    by_distance = weights["relative_bias"][bucket]  # [C, H]
    return seen, by_distance[jnp.clip(back, 0, capacity - 1)].transpose(0, 3, 1, 2)


def residual(
    stack: TransformerConfig, norm: Params, x: Float[Array, "D N"], layer: Callable[[Array], Array]
) -> Float[Array, "D N"]:
    if stack.norm_position == "pre":
        return x + layer(normalise(stack, norm, x))
    return normalise(stack, norm, x + layer(x))


def self_attention(
    stack: TransformerConfig,
    layer: Params,
    entry: dict[str, Array],
    x: Float[Array, "D N"],
    start: Int[Array, ""] | int,
    positions: Int[Array, "#B L"],
    seen: Bool[Array, "#B L C"],
    bias: Float[Array, "#B H L C"] | None,
) -> tuple[Float[Array, "D N"], dict[str, Array]]:
    """Attention to the new positions (prefill) or the cache (step), and the grown cache entry."""
    batch, groups, _, width = entry["k"].shape
    qkv = split_heads(linear(layer["qkv"], x), batch, width)
    query, key, value = jnp.split(qkv, [stack.heads, stack.heads + groups], axis=1)
    if stack.rotary:
        at = positions[:, None]
        query, key = rope(query, at, stack.rope_base), rope(key, at, stack.rope_base)
    corner = (0, 0, start, 0)
    entry = entry | {
        "k": jax.lax.dynamic_update_slice(entry["k"], key, corner),
        "v": jax.lax.dynamic_update_slice(entry["v"], value, corner),
    }
    if stack.scale is not None:
        query = query * (stack.scale * width**0.5)
    if isinstance(start, int):
        out = cached_attention(query, key, value, seen, bias)
    else:
        filled = start + query.shape[2]
        out = decode_attention(query, entry["k"], entry["v"], filled, seen, bias)
    return linear(layer["out"], merge_heads(out)), entry


def cross_attention(
    layer: Params,
    entry: dict[str, Array],
    x: Float[Array, "D N"],
    batch: int,
    mask: Bool[Array, "B C"] | None,
) -> Float[Array, "D N"]:
    query = split_heads(linear(layer["cross_query"], x), batch, entry["cross_k"].shape[-1])
    mask = None if mask is None else mask[:, None]
    out = cached_attention(query, entry["cross_k"], entry["cross_v"], mask)
    return linear(layer["cross_out"], merge_heads(out))


def logits(
    config: LMConfig, weights: Params, x: Float[Array, "D B"], slots: Int[Array, "#B S"]
) -> Float[Array, "B S V"]:
    """Of the codebooks that the slots show, from the columns of one position."""
    size, matrix = config.codebook_size, weights["heads"]
    # The barrier keeps XLA from folding the transpose into the product, which then runs ten times
    # slower on a CPU.
    out = jax.lax.optimization_barrier(linear(matrix, x))  # [K V, B]
    out = inside(config, out.T.reshape(-1, config.num_codebooks, size))
    if slots.shape[1] == config.num_codebooks:
        return out
    return jnp.take_along_axis(out, slots[..., None], axis=1)


def add_positions(
    config: LMConfig, x: Float[Array, "B L D"], positions: Int[Array, "#B L"]
) -> Float[Array, "B L D"]:
    """Sinusoids where the model has them; filler before an example's start gets those of 0."""
    if config.positions != "sinusoidal":
        return x
    return x + sinusoidal(jnp.maximum(positions, 0), config.dim)
