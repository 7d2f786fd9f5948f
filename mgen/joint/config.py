"""What a joint embedding is: the fields that tell MuLan, CLAP, MusicCoCa, SLAP and MusicLM's melody
embedding apart."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeAlias

import ml_collections

from mgen.audio import stft
from mgen.errors import UserError
from mgen.joint.htsat import HTSATConfig
from mgen.joint.resnet import ResNetConfig
from mgen.joint.text import TextConfig
from mgen.joint.vit import ViTConfig

AudioConfig: TypeAlias = ViTConfig | ResNetConfig | HTSATConfig
TOWERS: dict[str, type] = {"vit": ViTConfig, "resnet": ResNetConfig, "htsat": HTSATConfig}
PROJECTIONS = ("linear", "mlp", "batch_norm")
SCALES = ("log", "db")
# Fields of a tower that follow from the mel spectrogram.
DERIVED = {"vit": ("frames", "mels"), "resnet": (), "htsat": ("mels",)}
# Name of the text's vocabulary in a workdir.
VOCABULARY = "vocabulary.model"
# Fields of `JointConfig` that an experiment has in its `data` part.
FROM_DATA = ("sample_rate", "channels", "seconds", "text_length")


def _require(part: str, config: Any, field: str, fits: bool, expected: str) -> None:
    if not fits:
        where = field if part == "model" else f"{part}.{field}"
        raise UserError(f"model.{where} is {getattr(config, field)!r}, expected {expected}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig:
    """Log-mel front end, frames centred on multiples of the hop; the defaults are MuLan's.

    Attributes:
      n_fft, win_length, hop: samples.
      n_mels: bins M.
      fmin, fmax: Hz; fmax 0 is half the sample rate.
      htk: HTK's mel scale, not Slaney's.
      unit_area: filters of unit area over Hz (Slaney), else of peak 1.
      power: exponent of the magnitude.
      scale: "log" (natural) or "db" (10 log10).
      floor: of the mel values before the logarithm.
      mean, std: the result is (x - mean) / std.
    """

    n_fft: int = 512
    win_length: int = 400
    hop: int = 160
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float = 0.0
    htk: bool = True
    unit_area: bool = False
    power: float = 2.0
    scale: str = "log"
    floor: float = 1e-6
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _require("mel", self, "scale", self.scale in SCALES, f"one of {SCALES}")
        _require("mel", self, "std", self.std > 0, "a positive number")
        fits = 0 < self.win_length <= self.n_fft
        _require("mel", self, "win_length", fits, f"1 to n_fft = {self.n_fft}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    """Masks that training puts on a spectrogram (Park et al. 2019).

    Attributes:
      time_masks, mel_masks: how many of either.
      time_width, mel_width: widest mask as a share of the frames and of the bins.
    """

    time_masks: int = 0
    time_width: float = 0.1
    mel_masks: int = 0
    mel_width: float = 0.2

    def __post_init__(self) -> None:
        for field in ("time_width", "mel_width"):
            fits = 0 <= getattr(self, field) <= 1
            _require("spec_augment", self, field, fits, "a share in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Two towers, or one that hears both sides of a pair, and what joins them. 0 stands for "none".

    Attributes:
      sample_rate, channels, seconds: of the audio that the model reads at once (Hz, 1 or 2, s);
        channels are averaged.
      text_length: L, tokens of a text.
      embed_dim: D of the joint space.
      audio_kind, audio: "vit", "resnet" or "htsat", and that tower's config.
      text: text tower; None pairs audio with audio: one tower and one projection embed both.
      mel: front end of the audio tower.
      spec_augment: of the training audio.
      projection: of a tower's pooled output: "linear", CLAP's "mlp" (linear, relu, linear), or that
        with batch norm before the relu, "batch_norm": BYOL's, which keeps SLAP from collapsing. An
        example's place in the space then depends on its batch mates, in training alone.
      decoder_layers: of the captioning decoder that reads the audio tokens (CoCa); its other sizes
        are the text tower's.
      predictor_hidden: width inside SLAP's predictors.
      log_scale: initial ln of the inverse temperature.
      score_bias: initial bias of the sigmoid loss.
    """

    sample_rate: int = 16000
    channels: int = 1
    seconds: float = 10.0
    text_length: int = 128
    embed_dim: int = 128
    audio_kind: str = "vit"
    audio: AudioConfig
    text: TextConfig | None
    mel: MelConfig
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()
    projection: str = "linear"
    decoder_layers: int = 0
    predictor_hidden: int = 0
    log_scale: float = math.log(1 / 0.07)
    score_bias: float = 0.0

    def __post_init__(self) -> None:
        fits = TOWERS.get(self.audio_kind) is type(self.audio)
        _require("model", self, "audio_kind", fits, f"the kind of the tower, one of {list(TOWERS)}")
        fits = self.projection in PROJECTIONS
        _require("model", self, "projection", fits, f"one of {PROJECTIONS}")
        _require("model", self, "embed_dim", self.embed_dim > 0, "a positive number")
        for field in DERIVED[self.audio_kind]:
            have, want = getattr(self.audio, field), self.spectrogram[field == "mels"]
            if have != want:
                raise UserError(f"model.audio.{field} is {have}, expected the front end's {want}")
        if self.text is None:
            for field in ("decoder_layers", "predictor_hidden"):
                _require("model", self, field, not getattr(self, field), "0 without a text tower")
            return
        learned = self.text.positions == "learned"
        if learned and self.text.max_length < self.text_length:
            raise UserError(
                f"model.text.max_length is {self.text.max_length}, expected at least "
                f"data.text_length = {self.text_length}"
            )

    @property
    def samples(self) -> int:
        """Length of the audio that the model reads at once."""
        return round(self.seconds * self.sample_rate)

    @property
    def spectrogram(self) -> tuple[int, int]:
        """(frames, mel bins) of that audio."""
        return stft.num_frames(self.samples, self.mel.n_fft, self.mel.hop), self.mel.n_mels

    def model_fields(self) -> dict[str, Any]:
        """The `model` part of an experiment: everything that `from_experiment` does not find in
        its `data` part or derive."""
        fields = dataclasses.asdict(self)
        for name in FROM_DATA:
            del fields[name]
        for name in DERIVED[self.audio_kind]:
            del fields["audio"][name]
        return fields

    @classmethod
    def from_experiment(cls, config: ml_collections.ConfigDict) -> "JointConfig":
        """From `config.model` and the rate, channels, seconds and text length of `config.data`.

        Raises `UserError` for an unknown or missing field or a value of the wrong type.
        """
        data = {name: config.data[name] for name in FROM_DATA}
        return cls.from_fields(config.model.to_dict(), **data)

    @classmethod
    def from_fields(cls, model: Mapping[str, Any], **data: Any) -> "JointConfig":
        """From `model_fields` and the fields that `FROM_DATA` names; errors as `from_experiment`.

        The size of the spectrogram goes to the tower that asks for it.
        """
        values = dict(model)
        kind = values.get("audio_kind", "vit")
        if kind not in TOWERS:
            raise UserError(f"model.audio_kind is {kind!r}, expected one of {list(TOWERS)}")
        mel = _build(MelConfig, "model.mel", values.get("mel", {}))
        rate, seconds = data.get("sample_rate", 16000), data.get("seconds", 10.0)
        frames = stft.num_frames(round(seconds * rate), mel.n_fft, mel.hop)
        derived = {"frames": frames, "mels": mel.n_mels}
        audio = dict(values.get("audio", {})) | {name: derived[name] for name in DERIVED[kind]}
        text = values.get("text", {})
        parts = {
            "mel": mel,
            "audio": _build(TOWERS[kind], "model.audio", audio),
            "text": None if text is None else _build(TextConfig, "model.text", text),
            "spec_augment": _build(
                SpecAugmentConfig, "model.spec_augment", values.get("spec_augment", {})
            ),
        }
        return _build(cls, "model", values | data | parts)


def _build(cls: type, where: str, values: Mapping[str, Any]) -> Any:
    """A config dataclass from plain values: JSON's lists become tuples, whole numbers floats."""
    hints = typing.get_type_hints(cls)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{where}.{name}: unknown field, expected one of {sorted(hints)}")
        hint = hints[name]
        if isinstance(value, list):
            value = tuple(value)
        if hint is float and type(value) is int:
            value = float(value)
        if isinstance(hint, type) and hint in (int, float, bool, str) and type(value) is not hint:
            raise UserError(f"{where}.{name} is {value!r}, expected {hint.__name__}")
        fields[name] = value
    for field in dataclasses.fields(cls):
        plain = field.default is dataclasses.MISSING
        if plain and field.default_factory is dataclasses.MISSING and field.name not in fields:
            raise UserError(f"{where}.{field.name}: missing")
    return cls(**fields)
