"""The depth decoder: the codes of one frame, one after the other, from the frame's hidden vector.

A second, smaller Transformer runs over the K codebooks; it sees the first model's output at its
position 0 and the code of codebook k - 1 at position k (RQ-Transformer, Lee et al. 2022; Moshi,
section 3.4; CSM). Its module is part of `mgen.lm.model.LM`; this is its sampling.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mgen.lm import decode
from mgen.lm.config import LMConfig, rows
from mgen.lm.filters import sample_tokens
from mgen.lm.model import OUTSIDE
from mgen.nn.embed import take_rows
from mgen.typing import Array, Float, Int, Params


def draw(
    config: LMConfig,
    weights: Params,
    hidden: Float[Array, "D N"],
    mix: Callable[[Array], Array],
    keys: Array,
    numbers: dict[str, Array],
    filters: tuple[bool, bool],
) -> Int[Array, "B K"]:
    """The codes of a frame.

    Args:
      weights: of `decode.arrange`.
      hidden: of N = G B examples, G variants of the condition of B of them.
      mix: logits [G B, 1, V] to [B, 1, V].
      keys: one an example.
    """
    count, size = config.num_codebooks, config.codebook_size
    batch, variants = hidden.shape[1], hidden.shape[1] // keys.shape[0]
    cache = decode.init_cache(config.depth, batch, count)
    read, drawn = hidden.T[:, None], []
    for k in range(count):
        columns = decode.linear(weights["depth_projection"], decode.as_columns(read))
        x = columns.T[:, None]
        positions = jnp.full((1, 1), k)
        out, cache = decode.forward(
            config.depth, weights["depth"], cache, x, positions, jnp.int32(k)
        )
        own = {name: w[k * size : (k + 1) * size] for name, w in weights["heads"].items()}
        logits = decode.linear(own, out).T[:, None]  # [G B, 1, V]
        logits = jnp.where(jnp.arange(size) < config.sizes[k], mix(logits), OUTSIDE)
        own_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, k)
        drawn.append(sample_tokens(own_keys, logits, numbers, filters)[:, 0])
        tokens = jnp.concatenate([drawn[-1]] * variants)
        slots = jnp.full((batch, 1), k)
        read = take_rows(weights["embed"], tokens[:, None], rows(config.sizes), slots)
    return jnp.stack(drawn, axis=1)
