"""A wish as the streams that language models read: embeddings of texts and clips, tokens of
prompts, tunes and stems.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import jax.numpy as jnp
import numpy as np

from mgen.audio import chroma, io
from mgen.audio.resample import fit_length, num_samples
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.inputs import attributes
from mgen.inputs.vocabulary import Vocabulary
from mgen.joint.sample import FrozenJoint
from mgen.kmeans import Codebook
from mgen.lm.stages import Directions, Streams
from mgen.lm.streams import (
    ATTRIBUTES,
    CATEGORY,
    CHROMA,
    CONTEXT,
    EXCERPT,
    JOINT,
    JOINT_VECTORS,
    MELODY,
    STYLE,
    TEXT,
    Part,
    excerpt,
)
from mgen.semantic.sample import FrozenSemantic
from mgen.text_encoder import TextEncoder
from mgen.typing import ndarray
from mgen.wish import Wish, parse_scales, parse_story


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoders:
    """What a chain hears and reads with; None where it is not needed.

    Attributes:
      joint, vocabulary: for text and style of MusicLM's kind; text: for MusicGen's.
      semantic, semantic_codebook: for audio prompts of a chain with a semantic stage.
      style, style_codebook: for styles of MusicGen-Style's kind.
      melody, melody_codebook: for tunes of MusicLM's kind.
    """

    codec: FrozenCodec
    joint: FrozenJoint | None = None
    vocabulary: Vocabulary | None = None
    text: TextEncoder | None = None
    semantic: FrozenSemantic | None = None
    semantic_codebook: Codebook | None = None
    style: FrozenSemantic | None = None
    style_codebook: Codebook | None = None
    melody: FrozenJoint | None = None
    melody_codebook: Codebook | None = None

    def directions(self, wish: Wish, batch: int, reads: Collection[str]) -> Directions:
        """What of a wish is told by embeddings, classes and scales.

        Args:
          reads: streams that the chain is conditioned on.

        Raises:
          UserError: a wish that such a chain cannot follow.
        """
        if wish.condition and ATTRIBUTES not in reads:
            raise UserError(
                f"--condition={wish.condition}: this model was trained without conditions"
            )
        fields = np.tile(attributes.parse(wish.condition), (batch, 1))
        scales = parse_scales(wish.guidance_by)
        if unknown := sorted(scales.keys() - set(reads)):
            raise UserError(f"--guidance_by: {unknown[0]}, expected some of {sorted(reads)}")
        # A style of its own stream may stand beside a text.
        style = wish.style if STYLE not in reads else ""
        if bool(wish.prompt) + bool(style) + bool(wish.story) > 1:
            raise UserError("--prompt, --style and --story: expected one of them")
        told: list[tuple[float, Streams]] = []
        if style:
            joint = self.need_joint("style", reads)
            layout = dict(sample_rate=joint.config.sample_rate, channels=joint.config.channels)
            heard = joint.embed_audio(io.read(style, **layout))
            told = [(0.0, {JOINT_VECTORS: np.tile(heard, (batch, 1, 1))})]
        elif wish.prompt or wish.story:
            story = parse_story(wish.story) if wish.story else [(0.0, wish.prompt)]
            told = [(second, self.texts(text, batch, reads)) for second, text in story]
        return Directions(
            told=tuple(told),
            attributes=fields if ATTRIBUTES in reads else None,
            scales=scales,
            negative=self.texts(wish.negative, batch, reads) if wish.negative else None,
        )

    def texts(self, text: str | Sequence[str], batch: int, reads: Collection[str]) -> Streams:
        """What the chain reads of a text, or of one for each clip."""
        texts = [text] * batch if isinstance(text, str) else list(text)
        found: dict[str, ndarray] = {}
        if TEXT in reads:
            if self.text is None:
                raise UserError("text given: expected --text_encoder, as in training")
            found[TEXT], found[f"{TEXT}_mask"] = self.text(texts)
        if TEXT not in reads or {JOINT, JOINT_VECTORS} & set(reads):
            self.need_joint("text", reads)
            found[JOINT_VECTORS] = self.embed(texts)[:, None]
        return found

    def embed(self, texts: Sequence[str]) -> ndarray:
        """Joint embeddings [B, D] of texts."""
        if self.joint is None or self.vocabulary is None:
            raise UserError("text given: expected --joint")
        return self.joint.embed_text(*self.vocabulary.encode(texts, self.joint.config.text_length))

    def need_joint(self, what: str, reads: Collection[str]) -> FrozenJoint:
        if self.joint is None or not {JOINT, JOINT_VECTORS} & set(reads):
            raise UserError(f"{what} given: expected --joint, and a model trained on joint tokens")
        return self.joint

    def given(
        self, wish: Wish, batch: int, reads: Collection[str], categories: Sequence[str]
    ) -> Streams:
        """The streams of a tune to follow and of stems to fit, as long as the clip; of a style."""
        found: dict[str, ndarray] = {}
        if wish.context_stems or wish.target_stem:
            if CONTEXT not in reads:
                raise UserError("--context_stems, --target_stem: these models make no stems")
            found |= self._stems(wish, categories)
        if wish.melody:
            found |= self._tune(wish, reads)
        if wish.style and STYLE in reads:
            found[STYLE] = self._excerpt(wish)
        return {name: np.tile(rows, (batch, 1, 1)) for name, rows in found.items()}

    def _stems(self, wish: Wish, categories: Sequence[str]) -> dict[str, ndarray]:
        found = {}
        if wish.target_stem:
            if wish.target_stem not in categories:
                raise UserError(f"--target_stem={wish.target_stem}: expected one of {categories}")
            found[CATEGORY] = np.full((1, 1), categories.index(wish.target_stem))
        if wish.context_stems:
            found[CONTEXT] = self.codec.encode_long(self.context(wish)[None])[0]
        return found

    def context(self, wish: Wish) -> ndarray:
        """The sum float32 [T, C] of the stems that play along, at the codec's rate, cut to the
        clip's length."""
        config = self.codec.config
        layout = dict(sample_rate=config.sample_rate, channels=config.channels)
        mix = np.zeros((num_samples(wish.duration, config.sample_rate), config.channels))
        for path in wish.context_stems:
            if (length := io.info(path).duration) < wish.duration:
                raise UserError(
                    f"{path}: {length:.1f} s long, expected at least the {wish.duration:.1f} s of "
                    "the clip"
                )
            mix += fit_length(io.read(path, duration=wish.duration, **layout), len(mix))
        return mix.astype(np.float32)

    def _tune(self, wish: Wish, reads: Collection[str]) -> dict[str, ndarray]:
        def tune(sample_rate: int, channels: int) -> ndarray:
            audio = io.read(wish.melody, sample_rate=sample_rate, channels=channels)
            return np.resize(audio, (math.ceil(wish.duration * sample_rate), channels))

        found = {}
        if CHROMA in reads:
            found[CHROMA] = chroma.dominant(tune(chroma.SAMPLE_RATE, 1)[:, 0])
        if MELODY in reads:
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
        return found

    def _excerpt(self, wish: Wish) -> ndarray:
        """Tokens int32 [N, K] of the style's beginning, what is not known of it as training has
        it."""
        encoder, book = self.style, self.style_codebook
        if encoder is None or book is None:
            raise UserError(f"--style={wish.style}: expected --style_model and --style_codebook")
        levels, size, _ = book.vectors.shape
        rate = book.about["frame_rate"]
        audio = io.read(wish.style, sample_rate=encoder.config.sample_rate, channels=1)
        length = math.ceil(EXCERPT[1] * encoder.config.sample_rate)
        features = encoder.features_long(audio[:length], book.about["layer"], rate)
        part = Part(STYLE, 0, levels, size, rate)
        codes = book.encode(features)[: part.rows(EXCERPT[1])]
        found = np.asarray(excerpt(part, jnp.asarray(codes[None])))[0]
        filler = part.rows(EXCERPT[1]) - len(found)
        return np.pad(found, ((0, filler), (0, 0)), constant_values=size)

    def prompt(self, wish: Wish, batch: int, writes: Collection[str]) -> Streams:
        """The streams of the audio prompt that the stages write."""
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
        if "semantic" in writes:
            encoder, book = self.semantic, self.semantic_codebook
            if encoder is None or book is None:
                raise UserError(f"{path}: expected --semantic and --semantic_codebook with it")
            rate = book.about["frame_rate"]
            audio = io.read(path, sample_rate=encoder.config.sample_rate, channels=1)
            features = encoder.features_long(audio, book.about["layer"], rate)
            streams["semantic"] = book.encode(features)[None, : int(length * rate)]
        return {name: np.tile(codes, (batch, 1, 1)) for name, codes in streams.items()}
