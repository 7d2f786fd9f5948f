"""Shapes of the networks over stems."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from mgen.errors import UserError
from mgen.nn.transformer import REMAT_POLICIES, TransformerConfig

DTYPES = ("float32", "bfloat16")
# Fields with one value a level.
PER_LEVEL = ("factors", "blocks", "attentions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """A U-Net over waveforms; the defaults are MSDM's (Mariani et al. 2024).

    Attributes:
      stems, channels: S and C; the network sees their product as its channels.
      width: features of a patch, and the unit of the other widths.
      patch: samples that are folded into a frame.
      multipliers: of `width`: before the first level (1) and in each level.
      factors: frames that each level makes one of.
      blocks: residual blocks of each level on the way down; on the way up, a level with attention
        has one more, for the skip from its attention.
      attentions: whether each level ends in attention and a feed-forward.
      heads, head_dim: of attention, in the bottleneck too.
      ff_multiplier: hidden width of the feed-forward, in units of its level's.
      groups: of the group norms.
      per_track: whether each stem has a noise level of its own, or all have one.
      dtype: compute dtype; parameters, norms, softmax and the embedding of the noise level stay
        float32.
      remat: whether the backward pass computes each block anew instead of keeping what is in it.
    """

    stems: int = 4
    channels: int = 1
    width: int = 256
    patch: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4, 4, 4)
    factors: tuple[int, ...] = (4, 4, 4, 2, 2, 2)
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    attentions: tuple[bool, ...] = (False, False, False, True, True, True)
    heads: int = 8
    head_dim: int = 128
    ff_multiplier: int = 2
    groups: int = 8
    per_track: bool = False
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"model.dtype is {self.dtype!r}, expected one of {list(DTYPES)}")
        for name in PER_LEVEL:
            if len(getattr(self, name)) != self.levels:
                raise UserError(
                    f"model.{name} is {getattr(self, name)}, expected {self.levels} values, one "
                    "fewer than multipliers"
                )
        if not self.multipliers or self.multipliers[0] != 1:
            raise UserError(f"model.multipliers is {self.multipliers}, expected 1 first")
        if self.width % 2 or self.width % self.patch:
            raise UserError(
                f"model.width is {self.width}, expected an even multiple of patch {self.patch}"
            )
        if any(width % self.groups for width in self.widths[1:]):
            raise UserError(
                f"model.groups is {self.groups}, expected a divisor of the widths {self.widths[1:]}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> "UNetConfig":
        """From the `model` part of an experiment config; `UserError` names an unknown field."""
        values = known_fields(cls, {**dict(config), **overrides})
        for name in ("multipliers", *PER_LEVEL):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    @property
    def levels(self) -> int:
        return len(self.multipliers) - 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of a patch and of a frame of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def condition_width(self) -> int:
        """Features of the embedded noise level."""
        return 4 * self.width

    @property
    def hop(self) -> int:
        """Samples of a frame in the bottleneck; a length is a multiple of it."""
        return self.patch * math.prod(self.factors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A diffusion Transformer over latents of tracks; the defaults have the width, depth and heads
    of Stable Audio Open's (Evans et al. 2024).

    Attributes:
      stems: the most tracks that a song has; they stand in no order.
      latent_dim: D of the codec.
      categories: kinds of tracks: instruments, and the mix where it is a track.
      dim, heads, layers, ff: widths, heads and depth; the feed-forward is gated by SiLU.
      global_frames: frames a token of the attention over all tracks at all times; 0 leaves it out.
        A number of frames is a multiple of it.
      text_width: of the vectors that cross-attention reads (768 of T5-base); 0 leaves it out.
      chords: classes of a chord a frame; 0 leaves the input out. Class `chords` is "unknown".
      beats, melody: whether frames come with beats and downbeats, and with the twelve pitch classes
        of a melody.
      rope_base: of the rotary positions of frames.
      per_track: whether each track has a noise level of its own, or all have one.
      dtype: compute dtype; parameters, norms, softmax and modulation stay float32.
      scan, remat: see `mgen.nn.transformer.TransformerConfig`.
    """

    stems: int = 4
    latent_dim: int = 64
    categories: int = 4
    dim: int = 1536
    heads: int = 24
    layers: int = 24
    ff: int = 4096
    global_frames: int = 0
    text_width: int = 0
    chords: int = 0
    beats: bool = False
    melody: bool = False
    rope_base: float = 10000.0
    per_track: bool = True
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        for name, allowed in (("dtype", DTYPES), ("remat", ("none", *REMAT_POLICIES))):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"model.{name} is {getattr(self, name)!r}, expected one of {list(allowed)}"
                )
        for name in ("stems", "latent_dim", "categories", "layers", "ff"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}, expected at least 1")
        if self.heads < 1 or self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(
                f"model.heads is {self.heads}, expected a number that splits dim {self.dim} into "
                "even widths"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> "DiTConfig":
        """From the `model` part of an experiment config; `UserError` names an unknown field."""
        return cls(**known_fields(cls, {**dict(config), **overrides}))

    @property
    def hop(self) -> int:
        """Frames that a length is a multiple of."""
        return self.global_frames or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandConfig:
    """Shape of a network of Transformers along time and along frequency bands.

    Attributes:
      stems, channels: S and C.
      n_fft, hop: samples of a window and between windows.
      bands: K, a divisor of n_fft / 2; the bin at half the sample rate is left out.
      width, heads: D and H of the Transformers.
      layers: of a block along time and one along the bands each.
      ff_multiplier: hidden width of the feed-forwards and of the masks' layers, in units of D.
      dtype: compute dtype; parameters, norms, softmax and spectra stay float32.
      remat: whether the backward pass computes each block anew instead of keeping what is in it.
    """

    stems: int = 4
    channels: int = 1
    n_fft: int = 2048
    hop: int = 512
    bands: int = 64
    width: int = 384
    heads: int = 8
    layers: int = 12
    ff_multiplier: int = 4
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"model.dtype is {self.dtype!r}, expected one of {list(DTYPES)}")
        if self.n_fft % (2 * self.hop):
            raise UserError(
                f"model.n_fft is {self.n_fft}, expected a multiple of twice the hop {self.hop}"
            )
        if self.n_fft // 2 % self.bands:
            raise UserError(
                f"model.bands is {self.bands}, expected a divisor of n_fft / 2 = {self.n_fft // 2}"
            )
        if self.width % (2 * self.heads):
            raise UserError(
                f"model.width is {self.width}, expected a multiple of twice the {self.heads} heads"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Self:
        """From the `model` part of an experiment config; `UserError` names an unknown field."""
        return cls(**known_fields(cls, {**dict(config), **overrides}))

    @property
    def band_bins(self) -> int:
        """Bins of a band."""
        return self.n_fft // 2 // self.bands

    @property
    def block(self) -> TransformerConfig:
        """Of the blocks along either axis."""
        return TransformerConfig(
            dim=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            layers=1,
            ff=self.ff_multiplier * self.width,
            norm="rms",
            causal=False,
            rotary=True,
            dtype=self.dtype,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparatorConfig(BandConfig):
    """Shape of a `Separator`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandDenoiserConfig(BandConfig):
    """Shape of a `BandDenoiser`.

    Attributes:
      mix: whether the first of the tracks is the mix of the others.
      per_track: whether each track has a noise level of its own, or all have one.
    """

    mix: bool = False
    per_track: bool = False

    @property
    def condition_width(self) -> int:
        """Features of the embedded noise level."""
        return 4 * self.width


def known_fields(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """`values`; `UserError` names one that is no field of `cls`."""
    fields = {field.name for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(f"model.{name}: unknown field, expected one of {sorted(fields)}")
    return values
