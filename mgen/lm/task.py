"""What the trainer calls to train a token language model: any stage of the hierarchy."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mgen.errors import UserError
from mgen.kmeans import Codebook
from mgen.lm import condition as conditions
from mgen.lm import decode, masked
from mgen.lm import loss as lm_loss
from mgen.lm.condition import Condition
from mgen.lm.filters import SamplingConfig
from mgen.lm.model import LM
from mgen.lm.sample import SEGMENT
from mgen.lm.stages import FrozenStage
from mgen.lm.streams import (
    CHROMA,
    JOINT,
    JOINT_VECTORS,
    STYLE,
    TEXT,
    Stage,
    drop_sources,
    excerpt,
    model_config,
    pitch_classes,
)
from mgen.metrics import unigram
from mgen.nn.cluster import residual_codes
from mgen.train import task
from mgen.train.state import TrainState
from mgen.typing import Array, Batch, Bool, Float, Int, Key, Metrics, Params

BASELINE_BATCHES = 64
# Of `Task.sample`: MusicGen's.
GUIDANCE = 3.0


class Task(task.Task):
    """Prediction of the target of a stage, on batches of its streams {name: int32 [B, F, K]},
    attributes int32 [B, A] and vectors {name: float32 [B, D]}, of text float32 [B, L, D] and
    text_mask bool [B, L].

    Evaluation also gives "cross_entropy_alone", the loss of the same model without its condition.

    Reads from the config, beside what every family has:
      streams: codebooks, codebook_size, frame_rate (Hz) and whatever else of each stream the token
        dataset must agree with; "joint" is made here of the crop's mean embedding, see below.
      stage: target, prefix, aligned (names of parts, see `mgen.lm.streams`), vectors (a stream for
        cross-attention; "" for none), front (streams of vectors before everything else, as wide as
        `model.front` says), joint_codebook (folder of the codebook that makes "joint"
        tokens of the mean of "joint_embedding" over a crop, as MusicLM does).
      model: fields of `LMConfig` other than sizes, prefix and aligned.
      loss: z_loss, label_smoothing and chunk (see `mgen.lm.loss`), condition_dropout (share of
        examples that train without their condition, for guidance), attribute_dropout (share of
        single fields set to unknown, so that a user may give some of them only) and source_dropout
        (the same for single streams, {name: share}; each can then be guided by a scale of its own).
      masking (objective "masked"): see `mgen.lm.masked.MaskingConfig`.
      data.seconds: length of an example.
    """

    family = "lm"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.stage = Stage.from_config(config)
        self.lm_config = model_config(config)
        self.model = LM(self.lm_config)
        if self.lm_config.objective == "masked":
            self.masking = masked.MaskingConfig.from_config(config.masking)

    @property
    def joint(self) -> bool:
        """Whether "joint" tokens are read."""
        return JOINT in self.stage.streams

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        config, seconds = self.config, self.config.data.seconds
        spec = {}
        for name in self.stage.streams:
            about = config.streams[name]
            if name == JOINT:
                shape: tuple[int, ...] = (batch_size, about.embed_dim)
                spec[JOINT_VECTORS] = jax.ShapeDtypeStruct(shape, jnp.float32)
                continue
            rows = max(1, round(seconds * about.frame_rate))
            if name == CHROMA:
                shape = (batch_size, rows, about.width)
                spec[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
                continue
            shape = (batch_size, rows, about.codebooks)
            spec[name] = jax.ShapeDtypeStruct(shape, jnp.int32)
        if self.lm_config.attribute_sizes:
            fields = (batch_size, len(self.lm_config.attribute_sizes))
            spec["attributes"] = jax.ShapeDtypeStruct(fields, jnp.int32)
        for name, rate, width in self._vectors():
            if name == TEXT:
                shape = (batch_size, config.data.text_length)
                spec[f"{TEXT}_mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
            else:
                shape = (batch_size, *((max(1, round(seconds * rate)),) if rate else ()))
            spec[name] = jax.ShapeDtypeStruct((*shape, width), jnp.float32)
        return spec

    def _vectors(self) -> list[tuple[str, float, int]]:
        """(name, rows a second, width) of the streams of vectors."""
        stage, config = self.stage, self.lm_config
        across = [(stage.vectors, 0.0, config.condition_width)] if stage.vectors else []
        return across + [(*own, width) for own, width in zip(stage.front, config.front)]

    def manifest(self) -> dict[str, Any]:
        return {"streams": self.requires().get("streams", {}), "stage": self.config.stage.to_dict()}

    def requires(self) -> dict[str, Any]:
        streams = self.config.streams.to_dict()
        names = (*self.stage.streams, *(name for name, rate in self.stage.front if rate))
        wanted: dict[str, Any] = {"streams": {name: dict(streams[name]) for name in names}}
        for own in ("codebooks", "codebook_size"):  # data holds the vectors that tokens are made of
            wanted["streams"].get(CHROMA, {}).pop(own, None)
        if self.joint and self.config.stage.joint_codebook:
            # The embeddings must be those that the codebook was fitted to.
            wanted["parents"] = {"joint_codebook": load_codebook(self.config).fingerprint}
        return wanted

    def init_variables(self, key: Key) -> dict[str, Params]:
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.batch_spec(1))
        variables = {}
        if self.joint:
            about = self.config.streams[JOINT]
            shape = (about.codebooks, about.codebook_size, about.embed_dim)
            variables["joint"] = {"codebook": jnp.zeros(shape)}
        codes, condition = self.inputs(variables, batch)
        # Parameters do not depend on the length.
        condition = dataclasses.replace(
            condition, aligned=tuple(x[:, :1] for x in condition.aligned)
        )
        return {**variables, **dict(self.model.init(key, codes[:, :1], condition))}

    def warm_start(self, state: TrainState) -> TrainState:
        """Puts the codebook of "joint" in place."""
        if not self.joint:
            return state
        codebook = jnp.asarray(load_codebook(self.config).vectors)
        variables = {**state.variables, "joint": {"codebook": codebook}}
        return dataclasses.replace(state, variables=variables)

    def inputs(
        self, variables: Params, batch: Batch, key: Key | None = None
    ) -> tuple[Int[Array, "B F K"], Condition]:
        """The codes to predict and the condition; with a key, of a random excerpt of the style."""
        stage, streams = self.stage, dict(batch)
        if self.joint:
            codes, _ = residual_codes(batch[JOINT_VECTORS], variables["joint"]["codebook"])
            streams[JOINT] = codes[:, None]
        if CHROMA in stage.streams:
            streams[CHROMA] = pitch_classes(batch[CHROMA])
        if stage.style is not None:
            streams[STYLE] = excerpt(stage.style, batch[STYLE], key)
        codes = stage.grid(streams)
        vectors, mask = _read(batch, stage.vectors) if stage.vectors else (None, None)
        front = [_read(batch, name) for name, _ in stage.front]
        condition = Condition(
            attributes=batch.get("attributes") if self.lm_config.attribute_sizes else None,
            vectors=vectors,
            mask=mask,
            front=tuple(rows for rows, _ in front),
            front_mask=tuple(mask for _, mask in front),
            prefix=stage.prefix_codes(streams),
            aligned=stage.aligned_codes(streams, codes.shape[1]),
        )
        return codes, condition

    def sample(self, state: TrainState, batch: Batch, key: Key) -> Any:
        """Codes of all frames of a window, given the conditions of the batch, with guidance."""
        _, condition = self.inputs(state.variables, batch)
        return FrozenStage.from_trained(self.config, state.inference_params, {}).lm.generate(
            frames=self.stage.frames(self.config.data.seconds),
            seeds=jax.random.bits(key, (len(jax.tree.leaves(batch)[0]),)).astype(jnp.int32),
            condition=condition,
            sampling=SamplingConfig(guidance=GUIDANCE),
        )

    @property
    def sample_steps(self) -> int:
        if self.lm_config.objective != "next":
            return 1
        frames = self.stage.frames(self.config.data.seconds)
        return min(SEGMENT, self.lm_config.make_layout().steps(frames))

    def loss(
        self, params: Params, variables: Params, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, tuple[Metrics, Params]]:
        settings, config = self.config.loss, self.lm_config
        condition_key, dropout_key = jax.random.split(key)
        style_key = jax.random.fold_in(condition_key, 2) if train else None
        codes, condition = self.inputs(variables, batch, style_key)
        read, scored = codes, jnp.ones((1, 1, 1), bool)
        if config.objective == "masked":
            # Evaluation always hides the same.
            mask_key = jax.random.fold_in(condition_key, 0) if train else jax.random.key(0)
            hidden, scored = masked.training_masks(self.masking, mask_key, codes)
            read = jnp.where(hidden, jnp.asarray(config.sizes)[None, None], codes)
        if train:
            rates = settings.condition_dropout, settings.attribute_dropout
            condition = conditions.drop(config, condition_key, condition, *rates)
            sources_key = jax.random.fold_in(condition_key, 1)
            condition = drop_sources(
                self.stage, config, sources_key, condition, settings.source_dropout
            )
        bound = self.model.bind({"params": params}, rngs={"dropout": dropout_key})

        def losses(condition: Condition) -> dict[str, Array]:
            return lm_loss.losses(
                bound.heads,
                bound.top(read, condition, train),
                codes,
                scored,
                chunk=settings.chunk,
                z_loss=settings.z_loss if train else 0.0,
                label_smoothing=settings.label_smoothing if train else 0.0,
            )

        means = losses(condition)
        share = means.pop("share")
        whole = {name: (value * share).sum() for name, value in means.items()}
        metrics = {"cross_entropy": whole["nats"], "accuracy": whole["hits"]}
        if config.objective == "next":
            metrics |= {f"cross_entropy_{k}": value for k, value in enumerate(means["nats"])}
        if not train and jax.tree.leaves(condition):
            without = losses(conditions.absent(config, condition))
            metrics["cross_entropy_alone"] = (without["nats"] * share).sum()
        return whole["objective"], (metrics, variables)

    def int8_values(self, params: Params) -> Params:
        if self.lm_config.objective == "masked":
            return super().int8_values(params)
        return decode.int8_values(params)

    def baseline(self, train_data: Iterator[Batch], held_out: Iterator[Batch]) -> Metrics:
        """Loss on held-out codes of the training codes' frequencies (add-one smoothed): what a
        model scores that ignores context. And the steps in which a crop is generated."""
        train_counts = self._counts(itertools.islice(train_data, BASELINE_BATCHES))
        counts = self._counts(itertools.islice(held_out, BASELINE_BATCHES))
        nats = unigram.cross_entropy(train_counts, counts, self.lm_config.sizes)
        return {"unigram_cross_entropy": nats.mean(), "generation_steps": self.generation_steps()}

    def generation_steps(self) -> int:
        """Passes of the model in which a crop is generated."""
        if self.lm_config.objective == "masked":
            return sum(self.masking.passes(self.lm_config.num_codebooks))
        return self.lm_config.make_layout().steps(self.stage.frames(self.config.data.seconds))

    def _counts(self, batches: Iterator[Batch]) -> Int[np.ndarray, "K V"]:
        config = self.lm_config
        counts = np.zeros((config.num_codebooks, config.codebook_size), np.int64)
        for batch in batches:
            codes = np.asarray(self.stage.grid(batch))
            for k, row in enumerate(counts):
                row += np.bincount(codes[..., k].ravel(), minlength=config.codebook_size)
        return counts


def _read(batch: Batch, name: str) -> tuple[Float[Array, "B N D"], Bool[Array, "B N"]]:
    """Vectors of a stream and where there are any."""
    vectors = batch[name] if batch[name].ndim == 3 else batch[name][:, None]
    return vectors, batch.get(f"{name}_mask", jnp.ones(vectors.shape[:2], bool))


def load_codebook(config: ml_collections.ConfigDict) -> Codebook:
    """`stage.joint_codebook`; `UserError` where it does not fit `streams`."""
    about = config.streams[JOINT]
    if not config.stage.joint_codebook:
        raise UserError("stage.joint_codebook is empty, expected the codebook of the joint tokens")
    book = Codebook.load(config.stage.joint_codebook)
    expected = (about.codebooks, about.codebook_size, about.embed_dim)
    if book.vectors.shape != expected:
        raise UserError(
            f"{config.stage.joint_codebook}: shape is {book.vectors.shape}, expected {expected}"
        )
    return book
