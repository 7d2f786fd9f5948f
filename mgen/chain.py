"""Stages joined: trained models as `launch/` loads them, and the chain from text to audio.

With `mgen.tokenize` and `mgen.features` the modules that know more than one family. `launch/` and
the notebooks call them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen.audio import io
from mgen.codec.sample import FrozenCodec
from mgen.conditioning import Encoders
from mgen.errors import UserError
from mgen.inputs.mixes import converted
from mgen.inputs.vocabulary import Vocabulary
from mgen.joint.config import VOCABULARY
from mgen.joint.sample import FrozenJoint
from mgen.kmeans import Codebook
from mgen.lm import stages
from mgen.lm.filters import SamplingConfig
from mgen.lm.masked import FrozenMasked
from mgen.lm.stages import FrozenStage, Timeline
from mgen.semantic.config import SemanticConfig
from mgen.semantic.sample import FrozenSemantic
from mgen.text_encoder import TextEncoder
from mgen.train.checkpoint import Trained, load_trained
from mgen.typing import ndarray
from mgen.wish import Wish


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
      encoders: for what a wish holds, and the codec.
      about: fingerprints of all, for the JSON beside a clip.
    """

    stages: tuple[FrozenStage, ...]
    encoders: Encoders
    about: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def codec(self) -> FrozenCodec:
        return self.encoders.codec

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
        batch, encoders = len(seeds), self.encoders
        directions = encoders.directions(wish, batch, self._reads)
        prompt = encoders.prompt(wish, batch, self._writes) if wish.audio_prompt else None
        timelines = [
            Timeline(stage, wish.duration, seeds, directions, own, prompt, hole)
            for stage, own in zip(self.stages, sampling, strict=True)
        ]
        categories = next((stage.categories for stage in self.stages if stage.categories), ())
        return stages.run(timelines, encoders.given(wish, batch, self._reads, categories))

    def scores(self, audio: ndarray, texts: Sequence[str]) -> ndarray:
        """Cosines [B, N] between clips [B, T, C] at the codec's rate and texts (MusicLM's MuLan
        cycle consistency)."""
        if (joint := self.encoders.joint) is None:
            raise UserError("scores: expected --joint, which hears clips and reads texts")
        rate, layout = self.sample_rate, joint.config
        heard = [
            joint.embed_audio(converted(clip, rate, layout.sample_rate, layout.channels))
            for clip in audio
        ]
        return np.stack(heard) @ self.encoders.embed(texts).T

    @property
    def _reads(self) -> set[str]:
        """Streams that some stage is conditioned on."""
        return set().union(*(stage.reads for stage in self.stages))

    @property
    def _writes(self) -> set[str]:
        """Streams that some stage writes."""
        return {part.stream for stage in self.stages for part in stage.stage.target}

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


def load(
    lms: Sequence[str | Path],
    codec: str | Path,
    joint: str | Path = "",
    semantic: str | Path = "",
    semantic_codebook: str | Path = "",
    style_model: str | Path = "",
    style_codebook: str | Path = "",
    melody_model: str | Path = "",
    melody_codebook: str | Path = "",
    text_encoder: str | Path = "",
    int8: bool = False,
) -> Chain:
    """From workdirs; with `int8` weights of the language models, if asked. `UserError` where the
    tokens were made by other models."""
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
    if style_model:
        parts["style"], trained = load_semantic(style_model)
        own["style"] = trained.fingerprint
    if melody_model:
        parts["melody"], trained = load_joint(melody_model)
        own["melody"] = trained.fingerprint
    if text_encoder:
        parts["text"] = TextEncoder(text_encoder)
        own["text_encoder"] = parts["text"].fingerprint
    for name, folder in (
        ("semantic_codebook", semantic_codebook),
        ("style_codebook", style_codebook),
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
    encoders = Encoders(codec=frozen, **parts)
    stages = (stage.int8() if int8 else stage for stage, _ in loaded)
    return Chain(tuple(stages), encoders, own)
