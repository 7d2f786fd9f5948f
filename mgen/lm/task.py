"""What the trainer calls to train a token language model."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mgen.lm import loss as lm_loss
from mgen.lm.model import LM, LMConfig
from mgen.train import task
from mgen.typing import Array, Batch, Int, Key, Metrics, Params

BASELINE_BATCHES = 64


class Task(task.Task):
    """Next-token prediction on batches of {"codes": int32 [B, F, K]} and the model's conditions.

    A model with attributes also reads {"attributes": int32 [B, A]}, one with cross-attention
    {"condition": float32 [B, C, W], "condition_mask": bool [B, C]}.

    Reads from the config, beside what every family has:
      codec: codebooks, codebook_size, frame_rate (Hz), sample_rate (Hz) of the codec that made the
        tokens; a token dataset whose stream `data.stream` has other ones is refused.
      model: fields of `LMConfig` other than num_codebooks and codebook_size.
      loss: z_loss and label_smoothing (see `mgen.lm.loss`), condition_dropout (share of examples
        that train without their condition, for guidance) and attribute_dropout (share of single
        fields set to unknown, so that a user may give some of them only).
      data.seconds: length of an example.
      condition.length: C, with cross-attention only.
    """

    family = "lm"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.lm_config = LMConfig.from_config(
            config.model,
            num_codebooks=config.codec.codebooks,
            codebook_size=config.codec.codebook_size,
        )
        self.model = LM(self.lm_config)
        self.layout = self.lm_config.make_layout()
        self.frames = round(config.data.seconds * config.codec.frame_rate)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        config = self.lm_config
        codes = (batch_size, self.frames, config.num_codebooks)
        spec = {"codes": jax.ShapeDtypeStruct(codes, jnp.int32)}
        if config.attribute_sizes:
            fields = (batch_size, len(config.attribute_sizes))
            spec["attributes"] = jax.ShapeDtypeStruct(fields, jnp.int32)
        if config.condition_width:
            rows = (batch_size, self.config.condition.length)
            spec["condition"] = jax.ShapeDtypeStruct((*rows, config.condition_width), jnp.float32)
            spec["condition_mask"] = jax.ShapeDtypeStruct(rows, jnp.bool_)
        return spec

    def manifest(self) -> dict[str, Any]:
        return dict(self.config.codec)

    def requires(self) -> dict[str, Any]:
        return {"streams": {self.config.data.stream: dict(self.config.codec)}}

    def init_variables(self, key: Key) -> dict[str, Params]:
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.batch_spec(1))
        # Parameters do not depend on the length.
        tokens = batch.pop("codes")[:, :1]
        return dict(self.model.init(key, tokens, **batch))

    def loss(
        self, params: Params, variables: Params, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, tuple[Metrics, Params]]:
        settings = self.config.loss
        condition_key, dropout_key = jax.random.split(key)
        condition = {name: value for name, value in batch.items() if name != "codes"}
        if train:
            rates = settings.condition_dropout, settings.attribute_dropout
            condition = drop_condition(condition_key, condition, *rates)
        sequence = self.layout.encode(batch["codes"])
        mask = jnp.asarray(self.layout.mask(batch["codes"].shape[1]))[None]
        logits: Any = self.model.apply(
            {"params": params},
            self.layout.shift(sequence),
            **condition,
            train=train,
            rngs={"dropout": dropout_key},
        )
        nats, per_codebook = lm_loss.cross_entropy(logits, sequence, mask)
        objective = nats
        if train and (settings.z_loss or settings.label_smoothing):
            objective, _ = lm_loss.cross_entropy(
                logits,
                sequence,
                mask,
                z_loss=settings.z_loss,
                label_smoothing=settings.label_smoothing,
            )
        metrics = {
            "cross_entropy": nats,
            "accuracy": lm_loss.accuracy(logits, sequence, mask).mean(),
        }
        metrics |= {f"cross_entropy_{k}": value for k, value in enumerate(per_codebook)}
        return objective, (metrics, variables)

    def baseline(self, train_data: Iterator[Batch], held_out: Iterator[Batch]) -> Metrics:
        """Loss on held-out codes of the training codes' frequencies (add-one smoothed): what a
        model scores that ignores context."""
        train_counts = self._counts(itertools.islice(train_data, BASELINE_BATCHES))
        counts = self._counts(itertools.islice(held_out, BASELINE_BATCHES))
        return {"unigram_cross_entropy": lm_loss.unigram_cross_entropy(train_counts, counts).mean()}

    def _counts(self, batches: Iterator[Batch]) -> Int[np.ndarray, "K V"]:
        config = self.lm_config
        counts = np.zeros((config.num_codebooks, config.codebook_size), np.int64)
        for batch in batches:
            for k, row in enumerate(counts):
                row += np.bincount(
                    np.asarray(batch["codes"])[..., k].ravel(), minlength=config.codebook_size
                )
        return counts


def drop_condition(
    key: Key, condition: Batch, condition_dropout: float, attribute_dropout: float
) -> Batch:
    """Takes the whole condition from some examples, and single attributes (0, unknown) from others,
    at the given rates."""
    rows_key, fields_key = jax.random.split(key)
    size = jax.tree.leaves(condition)[0].shape[0] if condition else 0
    keep = jax.random.bernoulli(rows_key, 1.0 - condition_dropout, (size, 1))
    dropped = dict(condition)
    if "attributes" in condition:
        fields = condition["attributes"]
        keep_field = jax.random.bernoulli(fields_key, 1.0 - attribute_dropout, fields.shape)
        dropped["attributes"] = jnp.where(keep & keep_field, fields, 0)
    if "condition_mask" in condition:
        dropped["condition_mask"] = condition["condition_mask"] & keep
    return dropped
