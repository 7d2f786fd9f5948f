"""Shape of a token language model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mgen.errors import UserError
from mgen.lm.layouts import Layout
from mgen.nn.conformer import ConformerConfig
from mgen.nn.transformer import ACTIVATIONS, REMAT_POLICIES, TransformerConfig

Sizes = tuple[int, ...]

CHOICES = {
    "objective": ("next", "masked"),
    "activation": tuple(ACTIVATIONS),
    "norm": ("layer", "rms"),
    "norm_position": ("pre", "post"),
    "positions": ("sinusoidal", "rope", "relative", "none"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", *REMAT_POLICIES),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
    """A Transformer over K codebooks of codes: MusicLM's stages, MusicGen, SoundStorm and their
    relatives are settings of it. 0 and () stand for "none".

    Attributes:
      sizes: V_k of the K codebooks; token V_k is the special one (start, filler, mask).
      objective: "next" (each step from the ones before) or "masked" (all at once, from the codes
        that are not masked; layout "parallel").
      layout, delays: see `mgen.lm.layouts.Layout`.
      prefix: the codebook sizes of each sequence of codes that stands, flattened, before the
        target; token V_k there is "unknown".
      aligned: the codebook sizes of each sequence of codes with a row for every frame of the
        target, embedded and added to the steps of which it is the newest.
      front: widths of the sequences of vectors that stand, in order, before everything else; each
        is projected to `dim` where it differs.
      condition_width: width of the vectors that cross-attention reads (768 for T5-base); projected
        to `dim` where it differs.
      attribute_sizes: rows of each categorical field; field value 0 is "unknown". Their embeddings
        are added at every step of the target.
      dim, heads, kv_heads, layers, ff: widths and depth; kv_heads = 0 stands for `heads`.
      activation, gated, norm, norm_epsilon, norm_position, bias, dropout, dtype, scan, remat: see
        `mgen.nn.TransformerConfig`.
      positions: "sinusoidal" (added to the embeddings), "rope", "relative" (T5's learned bias of
        32 buckets up to distance 128) or "none".
      rope_base: of "rope".
      conv_kernel: width of the depthwise convolutions of a Conformer in place of the Transformer
        (objective "masked", without vectors for cross-attention).
      context: frames on either side that self-attention sees while a level > 0 is predicted, as
        MAGNeT restricts it (objective "masked", a Transformer); 0 is all of them.
      window, sink: positions that self-attention looks back (itself included), and the first ones
        that it always sees; window 0 is all of them.
      depth_layers, depth_dim, depth_heads, depth_ff: of a second Transformer over the codebooks of
        a frame (layout "parallel").
    """

    sizes: Sizes
    objective: str = "next"
    layout: str = "delay"
    delays: Sizes = ()
    prefix: tuple[Sizes, ...] = ()
    aligned: tuple[Sizes, ...] = ()
    front: Sizes = ()
    condition_width: int = 0
    attribute_sizes: Sizes = ()
    dim: int = 1024
    heads: int = 16
    kv_heads: int = 0
    layers: int = 24
    ff: int = 4096
    activation: str = "gelu"
    gated: bool = False
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    norm_position: str = "pre"
    bias: bool = False
    positions: str = "sinusoidal"
    rope_base: float = 10000.0
    conv_kernel: int = 0
    context: int = 0
    window: int = 0
    sink: int = 0
    depth_layers: int = 0
    depth_dim: int = 0
    depth_heads: int = 0
    depth_ff: int = 0
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"model.{field} is {getattr(self, field)!r}, expected one of {list(allowed)}"
                )
        for dim, heads in (("dim", "heads"), ("depth_dim", "depth_heads")):
            width, count = getattr(self, dim), getattr(self, heads)
            if (dim == "dim" or self.depth_layers) and (width % count or (width // count) % 2):
                raise UserError(
                    f"model.{heads} is {count}, expected a number that splits {dim} {width} into "
                    "even widths"
                )
        if self.kv_heads and self.heads % self.kv_heads:
            raise UserError(
                f"model.kv_heads is {self.kv_heads}, expected a divisor of heads {self.heads}"
            )
        if self.sink and not self.window:
            raise UserError(f"model.sink is {self.sink}, expected 0 where window is 0")
        if self.conv_kernel and (self.objective != "masked" or self.condition_width):
            raise UserError(
                f"model.conv_kernel is {self.conv_kernel}, expected 0 except with objective "
                "'masked' and condition_width 0"
            )
        if self.context and (self.objective != "masked" or self.conv_kernel):
            raise UserError(
                f"model.context is {self.context}, expected 0 except with objective 'masked' and "
                "conv_kernel 0"
            )
        if self.layout != "parallel":
            masked = self.objective == "masked" and "objective 'masked'"
            if found := (self.depth_layers and "depth_layers") or masked:
                raise UserError(
                    f"model.layout is {self.layout!r}, expected 'parallel' with {found}"
                )
        self.make_layout()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> "LMConfig":
        """From the `model` part of an experiment config; `UserError` names an unknown or missing
        field."""
        values = {**dict(config), **overrides}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise UserError(f"model.{name}: unknown field, expected one of {sorted(fields)}")
        if "sizes" not in values:
            raise UserError("model.sizes: missing")
        for name in ("sizes", "delays", "front", "attribute_sizes"):
            if name in values:
                values[name] = tuple(values[name])
        for name in ("prefix", "aligned"):
            if name in values:
                values[name] = tuple(tuple(sizes) for sizes in values[name])
        return cls(**values)

    @property
    def transformer(self) -> TransformerConfig:
        """Of the stack over the sequence."""
        return self._stack(
            dim=self.dim,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            layers=self.layers,
            ff=self.ff,
            causal=self.objective == "next",
            rotary=self.positions == "rope",
            relative_buckets=32 * (self.positions == "relative"),
            window=self.window,
            sink=self.sink,
            cross=self.condition_width > 0,
        )

    @property
    def conformer(self) -> ConformerConfig:
        """Of the stack over the sequence where `conv_kernel` is given."""
        names = "dim heads layers ff activation norm_epsilon dropout dtype scan remat"
        shared = {name: getattr(self, name) for name in names.split()}
        return ConformerConfig(**shared, kernel_size=self.conv_kernel, positions="rotary")

    @property
    def depth(self) -> TransformerConfig:
        """Of the stack over the codebooks of a frame."""
        return self._stack(
            dim=self.depth_dim,
            heads=self.depth_heads,
            kv_heads=self.depth_heads,
            layers=self.depth_layers,
            ff=self.depth_ff,
            rotary=self.positions == "rope",
        )

    def _stack(self, **fields: Any) -> TransformerConfig:
        names = "activation gated norm norm_epsilon norm_position bias dropout dtype scan remat"
        shared = {name: getattr(self, name) for name in (*names.split(), "rope_base")}
        return TransformerConfig(**shared, **fields)

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.sizes)

    @property
    def codebook_size(self) -> int:
        """V, the largest codebook: the width of the logits."""
        return max(self.sizes)

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def top_dim(self) -> int:
        """Width of what the heads read."""
        return self.depth_dim if self.depth_layers else self.dim

    def make_layout(self) -> Layout:
        return Layout(self.layout, self.sizes, self.delays)


def rows(sizes: Sizes) -> Sizes:
    """Rows of each codebook's embedding table: the codes and the special token."""
    return tuple(size + 1 for size in sizes)
