"""The token language model over a whole sequence, for training; `mgen.lm.decode` has the cached
step.

  [front vectors] [prefix codes] start target[:-1]  ->  Transformer  ->  heads (or depth decoder)

MusicGen (Copet et al. 2023), MusicLM's three stages (Agostinelli et al. 2023), SoundStorm (Borsos
et al. 2023) and CSM-like depth decoding are settings of `LMConfig`.
"""

import flax.linen as nn
import jax.numpy as jnp

from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig, rows
from mgen.nn import conformer, transformer
from mgen.nn.embed import SumEmbed, sinusoidal
from mgen.nn.masks import Nearby
from mgen.typing import Array, Float, Int, Params

OUTSIDE = -1e9  # logit of a code beyond the end of a smaller codebook
STACKS = ("transformer", "conformer", "depth")  # with layers that may be scanned


class LM(nn.Module):
    """Logits of every code from the conditions and what may be seen of the codes."""

    config: LMConfig

    def setup(self) -> None:
        config = self.config
        self.embed = SumEmbed(rows(config.sizes), config.dim)
        self.prefix = [SumEmbed(rows(sizes), config.dim) for sizes in config.prefix]
        self.aligned = [SumEmbed(rows(sizes), config.dim) for sizes in config.aligned]
        if config.attribute_sizes:
            self.attributes = SumEmbed(config.attribute_sizes, config.dim)
        if config.condition_width not in (0, config.dim):
            self.condition_projection = nn.Dense(config.dim, dtype=config.dtype)
        self.front_projection = [
            None if width == config.dim else nn.Dense(config.dim, dtype=config.dtype)
            for width in config.front
        ]
        self.dropout = nn.Dropout(config.dropout)
        if config.conv_kernel:
            self.conformer = conformer.Conformer(config.conformer)
        else:
            self.transformer = transformer.Transformer(config.transformer)
        if config.depth_layers:
            self.depth_projection = nn.Dense(config.depth_dim, use_bias=False, dtype=config.dtype)
            self.depth = transformer.Transformer(config.depth)
        self.heads = Heads(config)

    def __call__(
        self,
        codes: Int[Array, "B F K"],
        condition: Condition | None = None,
        train: bool = False,
    ) -> Float[Array, "B F K V"]:
        """Logits of `codes`, each from what its layout puts before it; float32.

        Args:
          codes: with objective "masked", the special token where a code is to be predicted.
          condition: see `Condition`; attributes None stands for all unknown, vectors None skips
            cross-attention, as fully masked ones do in a model without biases.
          train: whether dropout is on (needs the "dropout" generator).
        """
        return self.heads(self.top(codes, condition, train))

    def top(
        self,
        codes: Int[Array, "B F K"],
        condition: Condition | None = None,
        train: bool = False,
    ) -> Float[Array, "B F #K D"]:
        """What the heads read at each code; of size 1 in K where they all read the same."""
        config, frames = self.config, codes.shape[1]
        condition = condition or Condition()
        front = self.front(condition)
        x = jnp.concatenate([*front, self.target(codes, condition)], axis=1)
        if config.positions == "sinusoidal":
            x = x + sinusoidal(jnp.arange(x.shape[1]), config.dim)[None]
        x = self.dropout(x, deterministic=not train)
        x = self.trunk(x, condition, train, self.nearby(codes, x.shape[1]))
        x = x[:, x.shape[1] - self.steps(frames) :]
        if config.depth_layers:
            return self.depth(self.depth_input(x, codes), train=train).reshape(
                *codes.shape, config.depth_dim
            )
        if config.layout == "parallel":
            return x[:, :, None]
        return x[:, config.make_layout().schedule(frames)]

    def trunk(
        self, x: Array, condition: Condition, train: bool, nearby: Nearby | None
    ) -> Float[Array, "B L D"]:
        if self.config.conv_kernel:
            return self.conformer(x, train)
        memory = self.memory(condition)
        mask = None if memory is None else condition.mask
        return self.transformer(x, memory, mask, train, nearby)

    def nearby(self, codes: Int[Array, "B F K"], length: int) -> Nearby | None:
        """What `context` makes of self-attention (Ziv et al. 2024, "MAGNeT"): in examples with no
        hidden code in level 0 it sees frames nearby and what stands before the target."""
        config = self.config
        if not config.context:
            return None
        everything = (codes[..., 0] == config.sizes[0]).any(axis=1)
        return Nearby(everything, config.context, front=length - codes.shape[1])

    def steps(self, frames: int) -> int:
        """Positions of the target."""
        return self.config.make_layout().steps(frames)

    def target(self, codes: Array, condition: Condition) -> Float[Array, "B L D"]:
        """Embedded inputs of the target's positions."""
        config = self.config
        if config.objective == "masked":
            x = self.embed(codes)
        else:
            layout = config.make_layout()
            x = self.embed(
                layout.shift(layout.encode(codes)),
                jnp.asarray(layout.shifted_slots(codes.shape[1])),
            )
        newest = config.make_layout().newest(codes.shape[1])
        for module, aligned in zip(self.aligned, condition.aligned):
            x = x + module(aligned)[:, newest]
        if config.attribute_sizes:
            fields = condition.attributes
            if fields is None:
                fields = jnp.zeros((codes.shape[0], len(config.attribute_sizes)), jnp.int32)
            x = x + self.attributes(fields)[:, None]
        return x

    def front(self, condition: Condition) -> list[Float[Array, "B N D"]]:
        """Embedded inputs before the target."""
        parts = []
        masks = condition.front_mask or (None,) * len(condition.front)
        for projection, x, mask in zip(self.front_projection, condition.front, masks):
            x = x if projection is None else projection(x)
            parts.append(x if mask is None else x * mask[..., None])
        for module, codes in zip(self.prefix, condition.prefix):
            parts.append(module.rows(codes).reshape(codes.shape[0], -1, self.config.dim))
        return parts

    def memory(self, condition: Condition) -> Float[Array, "B C D"] | None:
        """What cross-attention reads: the vectors at the model's width, zero where masked, as
        MusicGen has it."""
        if not self.config.condition_width or condition.vectors is None:
            return None
        x = condition.vectors
        if self.config.condition_width != self.config.dim:
            x = self.condition_projection(x)
        return x if condition.mask is None else x * condition.mask[..., None]

    def depth_input(self, x: Float[Array, "B F D"], codes: Array) -> Float[Array, "N K E"]:
        """A sequence for each of the N = B F frames: its hidden vector, then the codes but the
        last (Moshi, section 3.4; CSM)."""
        # A small codebook's special token never comes here: these are real codes.
        before = self.embed.rows(codes)[:, :, :-1]
        sequence = jnp.concatenate([x[:, :, None], before.astype(x.dtype)], axis=2)
        return self.depth_projection(sequence.reshape(-1, codes.shape[2], x.shape[-1]))


class Heads(nn.Module):
    """One linear layer a codebook."""

    config: LMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B F #K D"]) -> Float[Array, "B F K V"]:
        config = self.config
        shape = (config.num_codebooks, config.codebook_size)
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=(0,))
        kernel = self.param("kernel", init, (shape[0], config.top_dim, shape[1]))
        kernel = kernel.astype(x.dtype)
        if x.shape[2] == 1:
            logits = jnp.einsum("bfd,kdv->bfkv", x[:, :, 0], kernel)
        else:
            logits = jnp.einsum("bfkd,kdv->bfkv", x, kernel)
        if config.bias:
            bias = self.param("bias", nn.initializers.zeros, shape)
            logits = logits + bias.astype(x.dtype)[None, None]
        return inside(config, logits.astype(jnp.float32))


def inside(config: LMConfig, logits: Float[Array, "*B K V"]) -> Float[Array, "*B K V"]:
    """`OUTSIDE` where a codebook is smaller than V."""
    if len(set(config.sizes)) == 1:
        return logits
    real = jnp.arange(config.codebook_size)[None] < jnp.asarray(config.sizes)[:, None]
    return jnp.where(real, logits, OUTSIDE)


def unstack_layers(params: Params) -> Params:
    """Parameters of `LM` with scan=False from those with scan=True."""
    stacks = [name for name in STACKS if name in params]
    return {**params, **{name: transformer.unstack_layers(params[name]) for name in stacks}}


def stack_layers(params: Params) -> Params:
    """Inverse of `unstack_layers`."""
    stacks = [name for name in STACKS if name in params]
    return {**params, **{name: transformer.stack_layers(params[name]) for name in stacks}}
