"""Shapes of a music encoder and of its training targets."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from mgen.errors import UserError
from mgen.nn.conformer import CONV_NORMS, POSITIONS, ConformerConfig
from mgen.nn.transformer import ACTIVATIONS, REMAT_POLICIES, TransformerConfig

Trunk: TypeAlias = TransformerConfig | ConformerConfig
TARGETS = ("random_projection", "mel_rvq", "codes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig:
    """A log-mel spectrogram, (log(max(power, floor)) - mean) / std.

    Attributes:
      n_fft, hop: samples.
      n_mels: M; fmin, fmax: Hz, None is half the sample rate.
      floor: least power.
      mean, std: of the logarithm over a training set, one number for all bins.
    """

    n_fft: int = 2048
    hop: int = 160
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    floor: float = 1e-5
    mean: float = -5.4
    std: float = 3.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvFrontConfig:
    """Convolutions on the waveform (wav2vec 2.0, HuBERT, MERT); no padding.

    Attributes:
      dims, kernels, strides: of each layer.
      bias: of the convolutions.
      norm: "group" normalises each channel of the first layer over time, "layer" the channels of
        every layer at each step.
      normalize: whether each recording is brought to zero mean and unit variance first.
    """

    dims: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    bias: bool = False
    norm: str = "group"
    normalize: bool = False

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @property
    def span(self) -> int:
        """Samples that one frame sees."""
        span = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides)):
            span = (span - 1) * stride + kernel
        return span

    def frames(self, samples: int) -> int:
        return max(0, (samples - self.span) // self.hop + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelFrontConfig:
    """Log-mel frames, brought to the trunk's rate by stacking or by 2-D convolutions.

    Attributes:
      mel: the spectrogram.
      stack: mel frames of one frame of the trunk; a power of two with convolutions.
      channels: of the 3x3 convolutions with stride 2 over time and frequency, log2(stack) of them
        (Conformer's subsampling); 0 lays the frames side by side (Wav2Vec2-BERT).
      residual: blocks of two convolutions beside a strided one, with norms, instead of single
        convolutions (MuQ).
    """

    mel: MelConfig = MelConfig()
    stack: int = 4
    channels: int = 0
    residual: bool = False

    @property
    def hop(self) -> int:
        return self.mel.hop * self.stack

    @property
    def span(self) -> int:
        """Samples that a recording of one frame must have."""
        return self.hop

    def frames(self, samples: int) -> int:
        return samples // self.hop


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """Shape of an encoder.

    Attributes:
      sample_rate: Hz; several audio channels are averaged.
      front, trunk: see there.
      feature_norm: whether a norm precedes the projection to the trunk's width.
      position_kernel, position_groups: of the grouped convolution whose output is added to the
        trunk's input (HuBERT), with weight norm over time; 0 is none.
      norm_epsilon: of the norms outside of the trunk.
      dropout: rate on the trunk's input.
    """

    sample_rate: int
    front: ConvFrontConfig | MelFrontConfig
    trunk: Trunk
    feature_norm: bool = False
    position_kernel: int = 0
    position_groups: int = 16
    norm_epsilon: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        trunk, front = self.trunk, self.front
        choices: dict[str, tuple[Any, tuple[str, ...]]] = {
            "trunk.activation": (trunk.activation, tuple(ACTIVATIONS)),
            "trunk.remat": (trunk.remat, ("none", *REMAT_POLICIES)),
            "trunk.dtype": (trunk.dtype, ("float32", "bfloat16")),
        }
        if isinstance(trunk, ConformerConfig):
            choices["trunk.positions"] = trunk.positions, POSITIONS
            choices["trunk.conv_norm"] = trunk.conv_norm, CONV_NORMS
        else:
            choices["trunk.norm_position"] = trunk.norm_position, ("pre", "post")
        if isinstance(front, ConvFrontConfig):
            choices["front.norm"] = front.norm, ("group", "layer")
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise UserError(f"model.{name} is {value!r}, expected one of {list(allowed)}")
        if trunk.dim % trunk.heads:
            raise UserError(
                f"model.trunk.heads is {trunk.heads}, expected a divisor of dim {trunk.dim}"
            )
        if self.position_kernel and trunk.dim % self.position_groups:
            raise UserError(
                f"model.position_groups is {self.position_groups}, expected a divisor of "
                f"dim {trunk.dim}"
            )
        if isinstance(front, ConvFrontConfig):
            if not len(front.dims) == len(front.kernels) == len(front.strides):
                raise UserError("model.front: dims, kernels and strides differ in length")
        elif front.channels and front.stack & (front.stack - 1):
            raise UserError(f"model.front.stack is {front.stack}, expected a power of two")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SemanticConfig":
        """From the `model` part of an experiment config, whose front and trunk have a `kind`;
        `UserError` names an unknown field."""
        values = {name: _plain(value) for name, value in dict(config).items()}
        for part, kinds in (("front", FRONTS), ("trunk", TRUNKS)):
            fields = dict(values.get(part) or {})
            kind = fields.pop("kind", None)
            if kind not in kinds:
                raise UserError(f"model.{part}.kind is {kind!r}, expected one of {list(kinds)}")
            if kind == "mel" and "mel" in fields:
                fields["mel"] = build(MelConfig, fields["mel"], "model.front.mel")
            if kind == "transformer":
                fields.setdefault("kv_heads", fields.get("heads"))
            values[part] = build(kinds[kind], fields, f"model.{part}")
        return build(cls, values, "model")

    @property
    def frame_rate(self) -> float:
        """Hz."""
        return self.sample_rate / self.front.hop

    @property
    def dim(self) -> int:
        return self.trunk.dim

    @property
    def layers(self) -> int:
        return self.trunk.layers

    def frames(self, samples: int) -> int:
        return self.front.frames(samples)

    def samples(self, frames: int) -> int:
        """The least samples that give so many frames."""
        return self.front.span + (frames - 1) * self.front.hop


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What the masked frames must tell; see `mgen.semantic.targets`.

    Attributes:
      kind: "random_projection" (BEST-RQ), "mel_rvq" (MuQ) or "codes" (MERT: tokens of a codec).
      codebooks, codebook_size: K and V.
      codebook_dim: width of the random projection.
      mel: the spectrogram of the first two kinds.
      codebook: folder of the residual codebooks of "mel_rvq".
      seed: of the random projection.
      head: "linear", or "cosine": similarity of a projection of width `head_dim` to one embedding a
        code, over `temperature` (HuBERT, equation 3).
      cqt_bins: M of a constant-Q transform to regress, 0 is none; cqt_bins_per_octave; cqt_fmin:
        Hz.
      cqt_gain: g in the regressed log(1 + g |X|); 0 regresses |X|.
    """

    kind: str
    codebooks: int
    codebook_size: int
    codebook_dim: int = 16
    mel: MelConfig = MelConfig()
    codebook: str = ""
    seed: int = 0
    head: str = "linear"
    head_dim: int = 64
    temperature: float = 0.1
    cqt_bins: int = 0
    cqt_bins_per_octave: int = 12
    cqt_fmin: float = 32.7
    cqt_gain: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("kind", TARGETS), ("head", ("linear", "cosine"))):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"targets.{name} is {getattr(self, name)!r}, expected one of {list(allowed)}"
                )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TargetConfig":
        """From the `targets` part of an experiment config; `UserError` names a bad field."""
        values = {name: _plain(value) for name, value in dict(config).items()}
        if "mel" in values:
            values["mel"] = build(MelConfig, values["mel"], "targets.mel")
        return build(cls, values, "targets")


FRONTS: dict[str, Any] = {"conv": ConvFrontConfig, "mel": MelFrontConfig}
TRUNKS: dict[str, Any] = {"transformer": TransformerConfig, "conformer": ConformerConfig}


def build(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    """`cls(**values)`; `UserError` names a field that is unknown or missing."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(f"{path}.{name}: unknown field, expected one of {sorted(fields)}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{path}.{name}: missing")
    return cls(**values)


def _plain(value: Any) -> Any:
    """ConfigDicts as dicts, lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if hasattr(value, "items"):
        return {name: _plain(item) for name, item in value.items()}
    return value
