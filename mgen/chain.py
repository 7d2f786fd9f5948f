"""Stages joined: trained models as `launch/` loads them, and the chain from text to audio.

With `mgen.tokenize` and `mgen.features` the modules that know more than one family. `launch/` and
the notebooks call them.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen.audio import chroma, io
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.inputs import attributes
from mgen.inputs.mixes import converted
from mgen.inputs.vocabulary import Vocabulary
from mgen.joint.config import VOCABULARY
from mgen.joint.sample import FrozenJoint
from mgen.kmeans import Codebook
from mgen.lm import stages
from mgen.lm.filters import SamplingConfig
from mgen.lm.masked import FrozenMasked
from mgen.lm.stages import Directions, FrozenStage, Timeline
from mgen.lm.streams import CHROMA, JOINT, JOINT_VECTORS, MELODY
from mgen.semantic.config import SemanticConfig
from mgen.semantic.sample import FrozenSemantic
from mgen.train.checkpoint import Trained, load_trained
from mgen.typing import ndarray
from mgen.wish import Wish, parse_story


def load_codec(workdir: str | Path) -> tuple[FrozenCodec, Trained]:
    """The codec trained in `workdir`; `UserError` where there is none."""
    trained = load_trained(workdir, "codec")
    return FrozenCodec.from_trained(trained.config, trained.params, trained.variables), trained


def load_semantic(workdir: str | Path) -> tuple[FrozenSemantic, Trained]:
    """The semantic encoder trained in `workdir`; `UserError` where there is none."""
    trained = load_trained(workdir, "semantic")
    config = SemanticConfig.from_config(trained.config.model)
    return FrozenSemantic.from_trained(config, trained.params, trained.variables), trained


def load_joint(workdir: str | Path) -> tuple[FrozenJoint, Trained]:
    """The joint embedding trained in `workdir`; `UserError` where there is none."""
    trained = load_trained(workdir, "joint")
    return FrozenJoint.from_trained(trained.config, trained.params, trained.variables), trained


def load_stage(workdir: str | Path) -> tuple[FrozenStage, Trained]:
    """The language model trained in `workdir`; `UserError` where there is none."""
    trained = load_trained(workdir, "lm")
    return FrozenStage.from_trained(trained.config, trained.params, trained.variables), trained


def vocabulary_of(trained: Trained) -> Vocabulary:
    """The vocabulary that a model was trained with, from its workdir."""
    return Vocabulary(trained.workdir / VOCABULARY)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Language models, each reading what those before it write, and the codec that plays the last
    one's tokens.

    Attributes:
      joint, vocabulary: for text and style; semantic, semantic_codebook: for prompts of a chain
        with a semantic stage; melody, melody_codebook: for tunes, where a stage reads their tokens.
        None where they are not needed.
      about: fingerprints of all, for the JSON beside a clip.
    """

    stages: tuple[FrozenStage, ...]
    codec: FrozenCodec
    joint: FrozenJoint | None = None
    vocabulary: Vocabulary | None = None
    semantic: FrozenSemantic | None = None
    semantic_codebook: Codebook | None = None
    melody: FrozenJoint | None = None
    melody_codebook: Codebook | None = None
    about: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.codec.config.sample_rate

    def generate(
        self, wish: Wish, seeds: ndarray, sampling: Sequence[SamplingConfig]
    ) -> tuple[ndarray, ndarray]:
        """Codes int32 [B, F, K] and audio float32 [B, T, C], one clip a seed.

        Args:
          sampling: one for each stage.

        Raises `UserError` for a wish that these models cannot follow.
        """
        *_, streams = self.stream(wish, seeds, sampling)
        return streams["acoustic"], self.codec.decode_long(streams["acoustic"])

    def best(
        self, wish: Wish, seeds: Sequence[int], sampling: Sequence[SamplingConfig], of: int
    ) -> tuple[ndarray, ndarray, ndarray]:
        """Seeds, codes and audio as `generate` gives them, each the one of `of` clips that fits the
        text best; the candidates for seed s have the seeds s, s + n, s + 2n, ... of n seeds."""
        if of > 1 and not wish.prompt:
            raise UserError("--best_of: expected --prompt, a text to compare the clips with")
        rounds = [np.asarray(seeds) + i * len(seeds) for i in range(of)]
        made = [(drawn, *self.generate(wish, drawn, sampling)) for drawn in rounds]
        if of == 1:
            return made[0]
        texts = [wish.prompt] if isinstance(wish.prompt, str) else wish.prompt
        fits = np.stack([self.scores(audio, texts) for _, _, audio in made])  # [of, B, N]
        own = np.arange(len(seeds)) % len(texts)
        chosen = fits[:, np.arange(len(seeds)), own].argmax(axis=0)
        kept, codes, audio = (
            np.stack([made[i][part][clip] for clip, i in enumerate(chosen)]) for part in range(3)
        )
        return kept, codes, audio

    def listen(
        self, wish: Wish, seeds: ndarray, sampling: Sequence[SamplingConfig], seconds: float = 1.0
    ) -> Iterator[ndarray]:
        """Blocks of audio [B, t, C] while the rest is still being made; joined they are what
        `generate` gives. The codec decodes `seconds` at a time."""

        def blocks() -> Iterator[ndarray]:
            heard = 0
            for streams in self.stream(wish, seeds, sampling):
                codes = streams["acoustic"]
                yield codes[:, heard:]
                heard = codes.shape[1]

        return self.codec.decode_chunks(blocks(), seconds=seconds)

    def stream(
        self, wish: Wish, seeds: ndarray, sampling: Sequence[SamplingConfig]
    ) -> Iterator[dict[str, ndarray]]:
        """All token streams int32 [B, F, K] as far as they are made, after each window."""
        seeds, hole = np.asarray(seeds), self._hole(wish)
        if wish.negative and all(own.guidance == 1 for own in sampling):
            raise UserError(f"--negative={wish.negative}: expected another --guidance than 1")
        if hole:
            wish = dataclasses.replace(wish, duration=io.info(wish.audio_prompt).duration)
        directions = self._directions(wish, len(seeds))
        prompt = self._prompt(wish, len(seeds)) if wish.audio_prompt else None
        timelines = [
            Timeline(stage, wish.duration, seeds, directions, own, prompt, hole)
            for stage, own in zip(self.stages, sampling, strict=True)
        ]
        return stages.run(timelines, self.melody_streams(wish, len(seeds)) if wish.melody else None)

    def scores(self, audio: ndarray, texts: Sequence[str]) -> ndarray:
        """Cosines [B, N] between clips [B, T, C] at the codec's rate and texts (MusicLM's MuLan
        cycle consistency)."""
        joint = self._need_joint("text")
        rate, layout = self.sample_rate, joint.config
        heard = [
            joint.embed_audio(converted(clip, rate, layout.sample_rate, layout.channels))
            for clip in audio
        ]
        return np.stack(heard) @ self.embed(texts).T

    def _directions(self, wish: Wish, batch: int) -> Directions:
        fields = None
        if any(stage.lm.config.attribute_sizes for stage in self.stages):
            fields = np.tile(attributes.parse(wish.condition), (batch, 1))
        elif wish.condition:
            raise UserError(
                f"--condition={wish.condition}: this model was trained without conditions"
            )
        if bool(wish.prompt) + bool(wish.style) + bool(wish.story) > 1:
            raise UserError("--prompt, --style and --story: expected one of them")
        vectors: list[tuple[float, ndarray]] = []  # [D], or [B, D]
        if wish.style:
            joint = self._need_joint("style")
            layout = dict(sample_rate=joint.config.sample_rate, channels=joint.config.channels)
            vectors = [(0.0, joint.embed_audio(io.read(wish.style, **layout)))]
        elif wish.prompt or wish.story:
            story = parse_story(wish.story) if wish.story else [(0.0, wish.prompt)]
            vectors = [
                (second, self.embed([text] if isinstance(text, str) else text))
                for second, text in story
            ]
        told = tuple((second, np.broadcast_to(v, (batch, v.shape[-1]))) for second, v in vectors)
        if not wish.negative:
            return Directions(told, fields)
        if self._reads.isdisjoint((JOINT, JOINT_VECTORS)):
            raise UserError(f"--negative={wish.negative}: these models were trained without text")
        return Directions(told, fields, np.tile(self.embed([wish.negative]), (batch, 1)))

    @property
    def _reads(self) -> frozenset[str]:
        """Streams that some stage is conditioned on."""
        return frozenset().union(*(stage.stage.reads for stage in self.stages))

    def embed(self, texts: Sequence[str]) -> ndarray:
        """Joint embeddings [B, D] of texts."""
        joint = self._need_joint("text")
        assert self.vocabulary is not None
        return joint.embed_text(*self.vocabulary.encode(texts, joint.config.text_length))

    def _need_joint(self, what: str) -> FrozenJoint:
        if self.joint is None:
            raise UserError(f"{what} given: expected --joint, and a model trained on joint tokens")
        return self.joint

    def _prompt(self, wish: Wish, batch: int) -> dict[str, ndarray]:
        """The streams of the prompt that the stages write."""
        config, path = self.codec.config, wish.audio_prompt
        length = io.info(path).duration
        if length >= wish.duration and wish.start is None:
            raise UserError(
                f"{path}: {length:.1f} s long, expected less than the {wish.duration:.1f} s of the "
                "clip"
            )
        audio = io.read(path, sample_rate=config.sample_rate, channels=config.channels)
        codes = self.codec.encode_long(audio[None])[:, : int(length * config.frame_rate)]
        streams = {"acoustic": codes}
        if any("semantic" in {p.stream for p in stage.stage.target} for stage in self.stages):
            if self.semantic is None or self.semantic_codebook is None:
                raise UserError(f"{path}: expected --semantic and --semantic_codebook with it")
            encoder, book = self.semantic, self.semantic_codebook
            rate = book.about["frame_rate"]
            audio = io.read(path, sample_rate=encoder.config.sample_rate, channels=1)
            features = encoder.features_long(audio, book.about["layer"], rate)
            streams["semantic"] = book.encode(features)[None, : int(length * rate)]
        return {name: np.tile(codes, (batch, 1, 1)) for name, codes in streams.items()}

    def _hole(self, wish: Wish) -> tuple[float, float] | None:
        """Seconds of the audio prompt that are made anew; None for a prompt to go on from."""
        if wish.start is None and wish.end is None:
            return None
        length = io.info(wish.audio_prompt).duration if wish.audio_prompt else 0.0
        if wish.start is None or wish.end is None or not 0 <= wish.start < wish.end <= length:
            raise UserError(
                f"--start={wish.start} --end={wish.end}: expected both, in order, within the "
                f"{length:.1f} s of --audio_prompt"
            )
        for i, stage in enumerate(self.stages):
            streams = {part.stream for part in stage.stage.target}
            if "acoustic" in streams and not isinstance(stage.lm, FrozenMasked):
                raise UserError(
                    f"--start={wish.start}: model {i} of --lm writes from left to right, expected "
                    "masked models for the codec's tokens"
                )
        return wish.start, wish.end

    def melody_streams(self, wish: Wish, batch: int) -> dict[str, ndarray]:
        """What the stages read of the tune, as long as the clip: tokens int32 [B, W, K] of its
        windows, pitch classes float32 [B, F, 12]."""

        def tune(sample_rate: int, channels: int) -> ndarray:
            audio = io.read(wish.melody, sample_rate=sample_rate, channels=channels)
            return np.resize(audio, (math.ceil(wish.duration * sample_rate), channels))

        found = {}
        if CHROMA in self._reads:
            found[CHROMA] = chroma.dominant(tune(chroma.SAMPLE_RATE, 1)[:, 0])
        if MELODY in self._reads:
            encoder, book = self.melody, self.melody_codebook
            if encoder is None or book is None:
                raise UserError(
                    f"--melody={wish.melody}: expected --melody_model and --melody_codebook with it"
                )
            audio = tune(encoder.config.sample_rate, encoder.config.channels)
            stride = 1.0 / book.about["frame_rate"]
            found[MELODY] = book.encode(encoder.window_embeddings(audio, stride))
        if not found:
            raise UserError(f"--melody={wish.melody}: these models were trained without melodies")
        return {name: np.tile(rows, (batch, 1, 1)) for name, rows in found.items()}


def load(
    lms: Sequence[str | Path],
    codec: str | Path,
    joint: str | Path = "",
    semantic: str | Path = "",
    semantic_codebook: str | Path = "",
    melody: str | Path = "",
    melody_codebook: str | Path = "",
) -> Chain:
    """From workdirs; `UserError` where the tokens were made by other models."""
    loaded = [load_stage(workdir) for workdir in lms]
    frozen, codec_trained = load_codec(codec)
    own = {"codec": codec_trained.fingerprint}
    parts: dict[str, Any] = {}
    if joint:
        parts["joint"], trained = load_joint(joint)
        parts["vocabulary"] = vocabulary_of(trained)
        own["joint"] = trained.fingerprint
    if semantic:
        parts["semantic"], trained = load_semantic(semantic)
        own["semantic"] = trained.fingerprint
    if melody:
        parts["melody"], trained = load_joint(melody)
        own["melody"] = trained.fingerprint
    for name, folder in (
        ("semantic_codebook", semantic_codebook),
        ("melody_codebook", melody_codebook),
    ):
        if folder:
            parts[name] = Codebook.load(folder)
            own[name] = parts[name].fingerprint
    for workdir, (_, trained) in zip(lms, loaded):
        for name, fingerprint in own.items():
            parent = trained.manifest["parents"].get(name)
            if parent != fingerprint and (parent or name == "codec"):
                raise UserError(
                    f"{workdir}: was trained on tokens of {name} {str(parent)[:12]}, "
                    f"given is {name} {fingerprint[:12]}"
                )
    own |= {f"lm_{i}": trained.fingerprint for i, (_, trained) in enumerate(loaded)}
    return Chain(tuple(stage for stage, _ in loaded), frozen, **parts, about=own)
