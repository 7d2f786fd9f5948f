"""Front end, two towers, a joint space; for CoCa a captioning decoder, for SLAP two predictors."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.audio import mel as mel_lib
from mgen.joint.config import TOWERS, JointConfig, MelConfig, SpecAugmentConfig
from mgen.joint.htsat import HTSAT
from mgen.joint.loss import normalise
from mgen.joint.resnet import ResNet
from mgen.joint.text import TextTower
from mgen.joint.towers import Embedded
from mgen.joint.vit import ViT
from mgen.nn.transformer import Transformer, TransformerConfig
from mgen.typing import Array, Bool, Float, Int, Key

MODULES: dict[str, Any] = {"vit": ViT, "resnet": ResNet, "htsat": HTSAT}
assert MODULES.keys() == TOWERS.keys()
# What draws random numbers in training: dropout, patchout of a ViT, SpecAugment.
RNG_STREAMS = ("dropout", "patchout", "augment")
# Collections beside the parameters; there with batch norm only.
COLLECTIONS = ("batch_stats",)
MOMENTUM = 0.95  # of the running statistics


class JointOutput(NamedTuple):
    """What the losses of a batch read.

    Attributes:
      audio, text: unit embeddings (of a pair of audio: of either one); in a model with predictors,
        the predictions.
      log_scale, score_bias: of the scores; score_bias is 0 in a model without one.
      caption_logits: prediction of tokens 1 .. L-1; with a decoder only.
    """

    audio: Float[Array, "B D"]
    text: Float[Array, "B D"]
    log_scale: Float[Array, ""]
    score_bias: Float[Array, ""]
    caption_logits: Float[Array, "B L V"] | None = None


class JointModel(nn.Module):
    """Audio and text, or pairs of audio, to unit vectors of one space.

    In a model with predictors (SLAP) that is the space of the predictions: those from either side
    of a pair aim at the same targets, while nothing pulls the projections themselves together.
    """

    config: JointConfig

    def setup(self) -> None:
        config = self.config
        self.audio_tower = MODULES[config.audio_kind](config.audio)
        self.audio_projection = Projection(config.embed_dim, config.projection)
        if config.text is not None:
            self.text_tower = TextTower(config.text)
            self.text_projection = Projection(config.embed_dim, config.projection)
        self.scores = Scores(config.log_scale, config.score_bias)
        if config.decoder_layers:
            self.decoder = CaptionDecoder(config)
        if config.predictor_hidden:
            self.audio_predictor = Predictor(config.predictor_hidden, config.embed_dim)
            self.text_predictor = Predictor(config.predictor_hidden, config.embed_dim)

    def __call__(
        self,
        audio: Float[Array, "B T C"],
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        train: bool = False,
    ) -> JointOutput:
        """Everything the losses need; `train` turns on what `RNG_STREAMS` names.

        Raises `UserError` where the audio is not of the config's length.
        """
        heard, read = self.hear(audio, train), self.text_tower(ids, mask, train=train)
        audio_vector, text_vector = self.join(heard, read, train)
        log_scale, score_bias = self.scores()
        logits = None
        if self.config.decoder_layers:
            logits = self.decoder(ids[:, :-1], heard.tokens, train)
        return JointOutput(audio_vector, text_vector, log_scale, score_bias, logits)

    def pair(
        self, audio: Float[Array, "B T C"], other: Float[Array, "B T C"], train: bool = False
    ) -> JointOutput:
        """`__call__` of a model without a text tower: `other` is heard as `audio` is, with dropout
        and masks of its own."""
        # One after the other: a batch of both would be spread over the devices anew.
        first, second = (self.embed_audio(x, train) for x in (audio, other))
        return JointOutput(first, second, *self.scores())

    def join(
        self, heard: Embedded | None, read: Embedded | None, train: bool, predict: bool = True
    ) -> list[Float[Array, "B D"]]:
        """Unit vectors of what the towers gave, audio first; projections even in a model with
        predictors where `predict` is False."""
        vectors = []
        if heard is not None:
            x = self.audio_projection(heard.pooled, train)
            if predict and self.config.predictor_hidden:
                x = self.audio_predictor(x, train)
            vectors.append(normalise(x))
        if read is not None:
            x = self.text_projection(read.pooled, train)
            if predict and self.config.predictor_hidden:
                x = self.text_predictor(x, train)
            vectors.append(normalise(x))
        return vectors

    def embed_audio(self, audio: Float[Array, "B T C"], train: bool = False) -> Float[Array, "B D"]:
        """Unit vectors of audio of the config's length."""
        return self.join(self.hear(audio, train), None, train)[0]

    def embed_text(
        self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"], train: bool = False
    ) -> Float[Array, "B D"]:
        return self.join(None, self.text_tower(ids, mask, train=train), train)[0]

    def project(
        self,
        audio: Float[Array, "B T C"],
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        train: bool = False,
    ) -> list[Float[Array, "B D"]]:
        """Unit projections of audio and text: what SLAP's target network gives."""
        heard, read = self.hear(audio, train), self.text_tower(ids, mask, train=train)
        return self.join(heard, read, train, predict=False)

    def hear(self, audio: Float[Array, "B T C"], train: bool) -> Embedded:
        """The audio tower on the (in training masked) spectrogram."""
        config = self.config
        spectrogram = log_mel(config.mel, audio, config.sample_rate)
        masks = config.spec_augment
        if train and (masks.time_masks or masks.mel_masks):
            spectrogram = spec_augment(masks, self.make_rng("augment"), spectrogram)
        return self.audio_tower(spectrogram, train=train)


class Projection(nn.Module):
    """Pooled output of a tower to the joint space, in float32. Batch norm has the statistics of the
    batch in training, running ones (collection "batch_stats") otherwise."""

    dim: int
    kind: str

    @nn.compact
    def __call__(self, x: Float[Array, "B W"], train: bool) -> Float[Array, "B D"]:
        if self.kind != "linear":
            x = nn.Dense(self.dim, name="in")(x)
            if self.kind == "batch_norm":
                x = nn.BatchNorm(not train, momentum=MOMENTUM, name="norm")(x)
            x = nn.relu(x)
        return nn.Dense(self.dim, name="out")(x)


class Scores(nn.Module):
    """The learned ln of the inverse temperature, and the bias of the sigmoid loss (0, and not
    learned, where its initial value is 0)."""

    log_scale: float
    bias: float

    @nn.compact
    def __call__(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        def scalar(name: str, value: float) -> Array:
            return self.param(name, nn.initializers.constant(value), ())

        bias = scalar("bias", self.bias) if self.bias else jnp.zeros(())
        return scalar("log_scale", self.log_scale), bias


class Predictor(nn.Module):
    """BYOL's predictor (Grill et al. 2020): linear, batch norm (as in `Projection`), relu,
    linear."""

    hidden: int
    dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], train: bool) -> Float[Array, "B D"]:
        x = nn.Dense(self.hidden, use_bias=False, name="in")(x)
        x = nn.BatchNorm(not train, momentum=MOMENTUM, name="norm")(x)
        return nn.Dense(self.dim, name="out")(nn.relu(x))


class CaptionDecoder(nn.Module):
    """Causal Transformer over the text that attends to the audio tokens (Yu et al. 2022, "CoCa",
    with all tokens in place of an attentional pooler). Input and output embeddings are one table.
    """

    config: JointConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], memory: Float[Array, "B N W"], train: bool
    ) -> Float[Array, "B L V"]:
        text = self.config.text
        assert text is not None
        init = nn.initializers.normal(0.02)
        table = nn.Embed(text.vocab_size, text.dim, embedding_init=init, name="tokens")
        positions = self.param("positions", init, (self.config.text_length, text.dim))
        stack = TransformerConfig(
            dim=text.dim,
            heads=text.heads,
            kv_heads=text.heads,
            layers=self.config.decoder_layers,
            ff=text.ff,
            bias=True,
            cross=True,
            dropout=text.dropout,
            dtype=text.dtype,
            scan=text.scan,
            remat=text.remat,
        )
        x = table(ids) + positions[None, : ids.shape[1]]
        memory = nn.Dense(text.dim, dtype=text.dtype, name="memory")(memory)
        x = Transformer(stack, name="transformer")(x, memory, None, train)
        return table.attend(x.astype(jnp.float32))


def log_mel(
    config: MelConfig, audio: Float[Array, "B T C"], sample_rate: int
) -> Float[Array, "B F M"]:
    """Normalised log-mel spectrogram of the mean of the channels; float32."""
    x = mel_lib.mel_spectrogram(
        audio.astype(jnp.float32).mean(axis=-1),
        sample_rate=sample_rate,
        n_fft=config.n_fft,
        hop=config.hop,
        win_length=config.win_length,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.fmax or None,
        htk=config.htk,
        norm="slaney" if config.unit_area else None,
        power=config.power,
    )
    if config.scale == "db":
        x = mel_lib.power_to_db(x, config.floor)
    else:
        x = jnp.log(jnp.maximum(x, config.floor))
    return (x - config.mean) / config.std


def spec_augment(
    config: SpecAugmentConfig, key: Key, x: Float[Array, "B F M"]
) -> Float[Array, "B F M"]:
    """Stretches of time and bands of bins set to the example's mean; each example draws for
    itself."""

    def keep(key: Key, size: int, count: int, share: float) -> Bool[Array, " size"]:
        width_key, start_key = jax.random.split(key)
        width = jax.random.uniform(width_key, (count, 1)) * share * size
        start = jax.random.uniform(start_key, (count, 1)) * (size - width)
        place = jnp.arange(size, dtype=jnp.float32)[None]
        return ~((place >= start) & (place < start + width)).any(axis=0)

    def example(number: Array, x: Float[Array, "F M"]) -> Float[Array, "F M"]:
        time_key, mel_key = jax.random.split(jax.random.fold_in(key, number))
        frames = keep(time_key, x.shape[0], config.time_masks, config.time_width)
        bins = keep(mel_key, x.shape[1], config.mel_masks, config.mel_width)
        return jnp.where(frames[:, None] & bins[None], x, x.mean())

    return jax.vmap(example)(jnp.arange(x.shape[0]), x)
