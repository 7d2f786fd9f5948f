"""A diffusion Transformer over the latents of a song's tracks (DiT, Peebles and Xie 2023).

A token is a frame of a track. Each block attends

  over time     each track for itself, with rotary positions
  over tracks   each frame for itself, in no order: a track is known by its category
  over all      a token for every few frames of every track (SyncTrack has attention of both kinds)
  to text       vectors of a text encoder

and feeds forward. Shift, scale and gate of each come from the noise level and the category of the
token's own track, by one layer for all blocks and an offset in each (adaLN-single, Chen et al.
2023, "PixArt-alpha", section 2.3); gates begin at 0 ("adaLN-zero"), so a block begins as the
identity.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mgen.errors import UserError
from mgen.nn.attention import Attention
from mgen.nn.transformer import REMAT_POLICIES
from mgen.sharding.mesh import BATCH, constrain
from mgen.stems.condition import CHANNELS, StemCondition, complete
from mgen.stems.config import DiTConfig
from mgen.typing import Array, Float

FREQUENCIES = 128  # of the learned Fourier features of a noise level, as in Stable Audio
EMBEDDING_INIT = nn.initializers.normal(0.02)
ZEROS = nn.initializers.zeros


def modulated(x: Array, shift: Array, scale: Array) -> Float[Array, "... D"]:
    """`x` of mean 0 and variance 1 over the last axis, scaled and shifted; in float32."""
    norm = nn.LayerNorm(
        epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=jnp.float32
    )
    return norm(x) * (1.0 + scale) + shift


class Modulation(nn.Module):
    """Shift, scale and gate of all sub-layers, and shift and scale of the output, of each track
    from its noise level and category; in float32.

    Attributes:
      count: vectors of D.
    """

    config: DiTConfig
    count: int

    @nn.compact
    def __call__(self, noise: Float[Array, "B S"], categories: Array) -> Float[Array, "B S N D"]:
        width = self.config.dim
        frequency = self.param("frequency", nn.initializers.normal(1.0), (FREQUENCIES,))
        angle = 2 * math.pi * noise.astype(jnp.float32)[..., None] * frequency[None, None]
        x = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        x = nn.Dense(width, name="noise_0")(x)
        x = nn.Dense(width, name="noise_1")(nn.silu(x))
        embed = nn.Embed(
            self.config.categories, width, embedding_init=EMBEDDING_INIT, name="category"
        )
        x = nn.silu(x + embed(categories))
        x = nn.Dense(self.count * width, kernel_init=ZEROS, name="modulation")(x)
        return x.reshape(*noise.shape, self.count, width)


class Block(nn.Module):
    """Attentions and feed-forward, each behind a modulated norm and with a gated residual."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S F D"],
        modulation: Float[Array, "B S N D"],
        condition: StemCondition,
    ) -> tuple[Float[Array, "B S F D"], None]:
        config = self.config
        layers = {"time": self._time, "tracks": self._tracks}
        if config.global_frames:
            layers["global"] = self._global
        if config.text_width:
            layers["text"] = self._text
        layers["ff"] = self._feed_forward
        own = self.param("modulation", ZEROS, (3 * len(layers), config.dim))
        vectors = iter(jnp.moveaxis(modulation + own[None, None], 2, 0)[:, :, :, None])
        for layer in layers.values():
            shift, scale, gate = next(vectors), next(vectors), next(vectors)
            h = modulated(x, shift, scale).astype(x.dtype)
            x = constrain(x + (gate * layer(h, condition)).astype(x.dtype), BATCH, None, "seq")
        return x, None

    def _time(self, x: Array, condition: StemCondition) -> Array:
        batch, stems = x.shape[:2]
        attention = self._attention("time", rotary=True, rope_base=self.config.rope_base)
        return attention(x.reshape(batch * stems, *x.shape[2:])).reshape(x.shape)

    def _tracks(self, x: Array, condition: StemCondition) -> Array:
        batch, stems, frames, width = x.shape
        rows = x.swapaxes(1, 2).reshape(batch * frames, stems, width)
        seen = jnp.repeat(condition.present, frames, axis=0)[:, None]
        rows = self._attention("tracks")(rows, mask=seen)
        return rows.reshape(batch, frames, stems, width).swapaxes(1, 2)

    def _global(self, x: Array, condition: StemCondition) -> Array:
        """Attention between means over a few frames; each is added to its frames."""
        batch, stems, frames, width = x.shape
        size = self.config.global_frames
        coarse = x.reshape(batch, stems, frames // size, size, width).mean(axis=3)
        tokens = coarse.reshape(batch, -1, width)
        seen = jnp.repeat(condition.present, frames // size, axis=1)[:, None]
        attention = self._attention("global", rotary=True, rope_base=self.config.rope_base)
        at = jnp.tile(jnp.arange(frames // size), stems)
        tokens = attention(tokens, mask=seen, positions=at)
        return jnp.repeat(tokens.reshape(coarse.shape), size, axis=2)

    def _text(self, x: Array, condition: StemCondition) -> Array:
        mask = condition.text_mask
        # Without a word the weights are those of nothing, and so must be what they weigh.
        memory = jnp.where(mask[..., None], condition.text, 0.0).astype(x.dtype)
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        return self._attention("text")(rows, memory, mask[:, None]).reshape(x.shape)

    def _feed_forward(self, x: Array, condition: StemCondition) -> Array:
        dense: dict[str, Any] = dict(use_bias=False, dtype=self.config.dtype)
        hidden = nn.Dense(self.config.ff, name="ff_in", **dense)(x)
        hidden = hidden * nn.silu(nn.Dense(self.config.ff, name="ff_gate", **dense)(x))
        return nn.Dense(self.config.dim, name="ff_out", **dense)(hidden)

    def _attention(self, name: str, **options: Any) -> Attention:
        config = self.config
        head_dim = config.dim // config.heads
        return Attention(
            config.heads, config.heads, head_dim, dtype=config.dtype, name=name, **options
        )


class DiT(nn.Module):
    """Latents of tracks of some noise level to latents, [B, S, F, D] to the same in float32.

    What is put in and what the output means is the process's matter, see `mgen.diffusion.process`.
    """

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S F D"],
        noise: Float[Array, "B *S"],
        condition: StemCondition | None = None,
    ) -> Float[Array, "B S F D"]:
        """Applies the network; absent tracks come out as 0 and change no other one.

        Args:
          x: at most `DiTConfig.stems` tracks; F is a multiple of `DiTConfig.hop`.
          noise: level as the process expresses it, [B], or [B, S] with `per_track`.

        Raises:
          UserError: shapes that do not fit the config, or a condition that it does not have.
        """
        config = self.config
        check_shapes(config, x, noise)
        batch, stems, frames, _ = x.shape
        condition = complete(config, condition or StemCondition(), batch, stems, frames)
        levels = jnp.broadcast_to(noise.reshape(batch, -1), (batch, stems))
        sublayers = 3 + bool(config.global_frames) + bool(config.text_width)
        modulation = Modulation(config, 3 * sublayers + 2, name="modulation")(
            levels, condition.categories
        )
        dense: dict[str, Any] = dict(dtype=config.dtype)
        x = nn.Dense(config.dim, name="latents", **dense)(x.astype(config.dtype))
        x = x + Controls(config, name="controls")(condition).astype(x.dtype)[:, None]
        x = self._blocks(x, modulation[:, :, :-2], condition)
        x = modulated(x, modulation[:, :, -2, None], modulation[:, :, -1, None])
        x = nn.Dense(config.latent_dim, kernel_init=ZEROS, name="out")(x)
        return jnp.where(condition.present[..., None, None], x, 0.0)

    def _blocks(self, x: Array, modulation: Array, condition: StemCondition) -> Array:
        config = self.config
        block: Any = Block
        if config.remat != "none":
            policy = REMAT_POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not config.scan)
        if not config.scan:
            for i in range(config.layers):
                x, _ = block(config, name=f"layers_{i}")(x, modulation, condition)
            return x
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.layers,
        )
        return stack(config, name="layers")(x, modulation, condition)[0]


class Controls(nn.Module):
    """What is known of each frame whatever the track: the sum of embeddings of its chord, beats and
    melody, learned ones where they are unknown; in float32, 0 of a model without such inputs."""

    config: DiTConfig

    @nn.compact
    def __call__(self, condition: StemCondition) -> Float[Array, "B #F D"]:
        config = self.config
        x = jnp.zeros((1, 1, config.dim))
        if config.chords:
            embed = nn.Embed(
                config.chords + 1, config.dim, embedding_init=EMBEDDING_INIT, name="chords"
            )
            x = x + embed(condition.chords)
        for name in CHANNELS:
            if getattr(config, name):
                unknown = self.param(f"{name}_unknown", EMBEDDING_INIT, (config.dim,))
                own = nn.Dense(config.dim, name=name)(getattr(condition, name))
                mask = getattr(condition, f"{name}_mask")
                x = x + jnp.where(mask[..., None], own, unknown[None, None])
        return x


def check_shapes(config: DiTConfig, x: Array, noise: Array) -> None:
    batch, stems, frames, width = x.shape
    if not 1 <= stems <= config.stems or width != config.latent_dim:
        raise UserError(
            f"{stems} tracks of {width} latents, expected 1 to {config.stems} of "
            f"{config.latent_dim}"
        )
    if not frames or frames % config.hop:
        raise UserError(f"tracks of {frames} frames, expected a multiple of {config.hop}")
    allowed = [(batch,)] + [(batch, stems)] * config.per_track
    if noise.shape not in allowed:
        raise UserError(f"noise levels of shape {noise.shape}, expected {allowed[-1]}")
