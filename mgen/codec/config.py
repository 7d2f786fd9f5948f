"""What a codec is: the fields that tell SoundStream, EnCodec, DAC and Oobleck apart."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from mgen.errors import UserError
from mgen.nn import activations, conv

INITS = ("released", "level")
BOTTLENECKS = ("rvq", "factorized_rvq", "vae", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Architecture of a codec. Strides are given in encoder order; the decoder mirrors them.

    Signal
      sample_rate: Hz. channels: 1 or 2.
      normalize: divide by the RMS level before the encoder and multiply after the decoder (EnCodec
        48 kHz).
      segment_seconds, segment_overlap: the codec is defined on segments of this length that overlap
        by this share (EnCodec 48 kHz: 1 s, 0.01); 0 s for the whole signal at once.
      align_input: pad audio by zeros to a multiple of the hop; False: every strided layer pads what
        it lacks (EnCodec).
    Convolutional stack
      filters, decoder_filters: width at the audio end; decoder_filters 0 for the same.
      strides: down-sampling factor of each stage; their product is the hop.
      multipliers: width after each stage over `filters`; () for 2, 4, 8, ...
      kernel_in: first layer of encoder and decoder. encoder_kernel_out, decoder_kernel_out: last
        ones.
      residual_kernel, dilations: one residual unit of this dilation a stage for each entry.
      compress: width inside a residual unit is divided by it. conv_shortcut: 1x1 convolution around
        it, else identity.
      lstm_layers: at the frame rate, after the last down-sampling and before the first up-sampling.
      activation: one of `mgen.nn.activations.NAMES`; final_activation: after the decoder.
      causal: convolutions look back only. pad_mode: "constant" or "reflect". norm: "none", "weight"
        or "time_group".
      output_padding: False drops one step at each odd up-sampling (DAC 24 kHz as published);
        `decode` fills up with zeros.
      decoder_out_bias: bias of the decoder's last layer.
      init: "released" draws kernels as the published codecs did, which makes signals shrink from
        layer to layer; "level" keeps them at RMS 1 inside, and learns faster by far where there are
        only a few thousand steps.
      dtype: computation dtype of the convolutions, "float32" or "bfloat16"; parameters and
        bottleneck stay float32.
    Bottleneck
      bottleneck: "rvq" (EMA codebooks), "factorized_rvq" (DAC), "vae" (Gaussian) or "none".
      latent_dim: D, width of latents.
      num_codebooks: K. codebook_size: V. codebook_dim: width in which "factorized_rvq" compares.
      ema_decay: of the "rvq" codebook statistics. kmeans_iterations: on the first batch.
      dead_code_threshold: codes used less than this share of uniform usage are replaced by vectors
        of the batch.
      quantizer_dropout: probability with which a training example uses a random number of
        codebooks.
      dropout_choices: the numbers drawn from, as entries of 1..K; () for all of them.
    """

    sample_rate: int
    channels: int = 1
    normalize: bool = False
    segment_seconds: float = 0.0
    segment_overlap: float = 0.0
    align_input: bool = True

    filters: int = 32
    decoder_filters: int = 0
    strides: tuple[int, ...] = (2, 4, 5, 8)
    multipliers: tuple[int, ...] = ()
    kernel_in: int = 7
    encoder_kernel_out: int = 7
    decoder_kernel_out: int = 7
    residual_kernel: int = 3
    dilations: tuple[int, ...] = (1,)
    compress: int = 2
    conv_shortcut: bool = False
    lstm_layers: int = 0
    activation: str = "elu"
    final_activation: str = "none"
    causal: bool = False
    pad_mode: str = "constant"
    norm: str = "weight"
    output_padding: bool = True
    decoder_out_bias: bool = True
    init: str = "released"
    dtype: str = "float32"

    bottleneck: str = "rvq"
    latent_dim: int = 128
    num_codebooks: int = 8
    codebook_size: int = 1024
    codebook_dim: int = 8
    ema_decay: float = 0.99
    kmeans_iterations: int = 10
    dead_code_threshold: float = 0.1
    quantizer_dropout: float = 0.0
    dropout_choices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._require("bottleneck", self.bottleneck in BOTTLENECKS, f"one of {BOTTLENECKS}")
        self._require("init", self.init in INITS, f"one of {INITS}")
        self._require("norm", self.norm in conv.NORMS, f"one of {conv.NORMS}")
        self._require("pad_mode", self.pad_mode in conv.PAD_MODES, f"one of {conv.PAD_MODES}")
        for field in ("activation", "final_activation"):
            known = getattr(self, field) in activations.NAMES
            self._require(field, known, f"one of {activations.NAMES}")
        self._require("dtype", self.dtype in ("float32", "bfloat16"), "float32 or bfloat16")
        self._require("channels", self.channels in (1, 2), "1 or 2")
        positive = ("sample_rate", "filters", "latent_dim", "num_codebooks", "codebook_size")
        for field in (*positive, "codebook_dim", "compress"):
            self._require(field, getattr(self, field) > 0, "a positive number")
        self._require("strides", all(s > 0 for s in self.strides), "positive factors")
        fits = len(self.multipliers) in (0, len(self.strides))
        self._require("multipliers", fits, f"() or {len(self.strides)} of them, one a stride")
        self._require("quantizer_dropout", 0.0 <= self.quantizer_dropout <= 1.0, "a probability")
        fits = all(1 <= k <= self.num_codebooks for k in self.dropout_choices)
        self._require("dropout_choices", fits, f"numbers in 1..{self.num_codebooks}")
        segmented = self.norm != "time_group" or not self.causal
        self._require("norm", segmented, "another one with causal=True: time_group sees the future")

    def _require(self, field: str, fits: bool, expected: str) -> None:
        if not fits:
            raise UserError(
                f"codec config: {field} is {getattr(self, field)!r}, expected {expected}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "CodecConfig":
        """Builds from a ConfigDict or a dict (JSON lists become tuples).

        Raises `UserError` for an unknown key, a missing `sample_rate` or a value of the wrong type.
        """
        hints = typing.get_type_hints(cls)
        values = dict(config.items())
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise UserError(
                f"codec config: unknown field {unknown[0]!r}, expected of {sorted(hints)}"
            )
        if "sample_rate" not in values:
            raise UserError("codec config: sample_rate is missing, expected a number in Hz")
        return cls(**{name: _convert(name, value, hints[name]) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields; `from_config` takes them back."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> "CodecConfig":
        return dataclasses.replace(self, **changes)

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.sample_rate / self.hop

    @property
    def has_codes(self) -> bool:
        return self.bottleneck in ("rvq", "factorized_rvq")

    @property
    def stage_multipliers(self) -> tuple[int, ...]:
        """Widths over `filters`, from the audio end: one more than strides."""
        stages = range(1, len(self.strides) + 1)
        return (1, *(self.multipliers or (2**i for i in stages)))

    @property
    def segment_length(self) -> int:
        """Samples of a segment; 0 where the codec takes the whole signal."""
        return int(self.segment_seconds * self.sample_rate)

    @property
    def segment_stride(self) -> int:
        """Samples from the start of a segment to that of the next."""
        return max(1, int((1.0 - self.segment_overlap) * self.segment_length))


def _convert(name: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
            raise UserError(f"codec config: {name} is {value!r}, expected a list of integers")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"codec config: {name} is {value!r}, expected {hint.__name__}")
    return value
