"""What the trainer calls to train a joint embedding."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import ml_collections

from mgen.errors import UserError
from mgen.inputs.vocabulary import Vocabulary
from mgen.joint import loss as losses
from mgen.joint.config import VOCABULARY, JointConfig
from mgen.joint.model import COLLECTIONS, RNG_STREAMS, JointModel, JointOutput
from mgen.train import task
from mgen.train.state import TrainState
from mgen.typing import Array, Batch, Key, Metrics, Params

KINDS = ("contrastive", "sigmoid", "triplet", "slap")
# What SLAP's target network is made of; predictors belong to the trained side alone.
TARGET = ("audio_tower", "text_tower", "audio_projection", "text_projection")
# A loss within this share of chance, or a spread of embeddings under it, for so many steps in a row
# is called a collapse.
COLLAPSE_SHARE = 0.01
COLLAPSE_STEPS = 200
BASELINE_BATCHES = 64


class Task(task.Task):
    """Matches audio and text in batches of {"audio": float32 [B, T, C], "text": int32 [B, L],
    "text_mask": bool [B, L]}; in a model without a text tower (model.text None) audio and audio, in
    {"audio", "other": float32 [B, T, C], "piece": int32 [B]}.

    Reads from the config, beside what every family has:
      model: `JointConfig.model_fields`; data.sample_rate, channels, seconds and text_length.
      loss.kind: "contrastive", "sigmoid", "triplet" or "slap", see `mgen.joint.loss`.
      loss.mask_duplicates: equal texts (pieces) of a batch are no negatives of each other.
      loss.chunk: rows of scores that exist at a time on a device; 0 for all.
      loss.caption_weight: of the captioning loss, with model.decoder_layers.
      loss.margin: of "triplet".
      loss.intra_weight, loss.target_decay: SLAP's w and the decay of its target network.

    Negatives are those of a micro-batch, data.batch_size / optim.accumulate examples (over all
    devices): accumulation saves memory, but makes every loss that compares with them easier.
    SLAP, which has no negatives, loses nothing by it.

    `variables` holds "collapse" (steps in a row at chance, see `warnings`) and for SLAP "target",
    moved towards the parameters after every update.
    """

    family = "joint"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.joint_config = JointConfig.from_experiment(config)
        self.model = JointModel(self.joint_config)
        self.pairs_audio = self.joint_config.text is None
        kind, predicts = config.loss.kind, self.joint_config.predictor_hidden > 0
        if kind not in KINDS:
            raise UserError(f"config.loss.kind is {kind!r}, expected one of {KINDS}")
        if predicts != (kind == "slap"):
            raise UserError(
                f"config.model.predictor_hidden is {self.joint_config.predictor_hidden}, expected "
                "a width with loss.kind 'slap' and 0 otherwise"
            )
        if (config.loss.caption_weight > 0) != (self.joint_config.decoder_layers > 0):
            raise UserError(
                f"config.loss.caption_weight is {config.loss.caption_weight} with "
                f"model.decoder_layers {self.joint_config.decoder_layers}, expected both or neither"
            )

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        config = self.joint_config
        shape = (batch_size, config.samples, config.channels)
        audio = jax.ShapeDtypeStruct(shape, jnp.float32)
        if self.pairs_audio:
            piece = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
            return {"audio": audio, "other": audio, "piece": piece}
        text = (batch_size, config.text_length)
        return {
            "audio": audio,
            "text": jax.ShapeDtypeStruct(text, jnp.int32),
            "text_mask": jax.ShapeDtypeStruct(text, jnp.bool_),
        }

    def manifest(self) -> dict[str, Any]:
        config = self.joint_config
        about = {
            "sample_rate": config.sample_rate,
            "channels": config.channels,
            "window_seconds": config.seconds,
            "embed_dim": config.embed_dim,
        }
        if config.text is not None:
            about |= {"text_length": config.text_length, "vocab_size": config.text.vocab_size}
        return about

    def files(self) -> dict[str, str]:
        """The vocabulary of a text tower; `UserError` where it has more pieces than that has
        rows."""
        if self.joint_config.text is None:
            return {}
        path, rows = self.config.data.vocabulary, self.joint_config.text.vocab_size
        size = Vocabulary(path).size
        if size > rows:
            raise UserError(f"{path}: has {size} pieces, model.text.vocab_size is {rows}")
        return {VOCABULARY: path}

    def init_variables(self, key: Key) -> dict[str, Params]:
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.batch_spec(1))
        method = JointModel.pair if self.pairs_audio else None
        variables = flax.core.unfreeze(self.model.init(key, *self._inputs(batch), method=method))
        params = variables["params"]
        variables["collapse"] = {"steps": jnp.zeros((), jnp.int32)}
        if self.config.loss.kind == "slap":
            # A copy, as both are donated.
            variables["target"] = jax.tree.map(jnp.copy, {name: params[name] for name in TARGET})
        return variables

    def loss(
        self, params: Params, variables: Params, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, tuple[Metrics, Params]]:
        settings = self.config.loss
        model_key, target_key = jax.random.split(key)
        output, variables = self._apply(params, variables, batch, model_key, train)
        groups = self._groups(batch)
        if settings.kind == "slap":
            target, _ = self._apply(
                variables["target"], variables, batch, target_key, train, JointModel.project
            )
            objective, metrics = self._slap(output, target)
        else:
            objective, metrics = self._matching(output, groups)
        forward, back = losses.accuracy(output.audio, output.text, groups, settings.chunk)
        side = "other" if self.pairs_audio else "text"
        metrics |= {f"accuracy_audio_to_{side}": forward, f"accuracy_{side}_to_audio": back}
        if settings.caption_weight:
            logits, text = output.caption_logits, batch["text"]
            nats = losses.captioning(logits, text[:, 1:], batch["text_mask"][:, 1:])
            objective = objective + settings.caption_weight * nats
            metrics["caption_cross_entropy"] = nats
        return objective, (metrics, variables)

    def train_step(self, state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Metrics]:
        after, metrics = super().train_step(state, batch, key)
        stuck = self._collapsed(metrics)
        steps = jnp.where(stuck, state.variables["collapse"]["steps"] + 1, 0)
        variables = dict(after.variables) | {"collapse": {"steps": steps}}
        metrics["steps_at_chance"] = steps.astype(jnp.float32)
        if self.config.loss.kind == "slap":
            rate = 1.0 - self.config.loss.target_decay
            moved = {name: after.params[name] for name in TARGET}
            variables["target"] = jax.tree.map(
                lambda old, new: old + rate * (new - old), state.variables["target"], moved
            )
        return dataclasses.replace(after, variables=variables), metrics

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        if metrics.get("steps_at_chance", 0.0) < COLLAPSE_STEPS:
            return []
        same = f"all embeddings have been the same for {COLLAPSE_STEPS} steps: "
        if self.config.loss.kind == "slap":
            return [
                f"{same}lower optim.learning_rate or raise loss.target_decay, optim.warmup or "
                "model.predictor_hidden"
            ]
        if self.config.loss.kind == "triplet":
            return [f"{same}lower optim.learning_rate, raise optim.warmup or loss.margin"]
        return [
            f"the loss has been within {COLLAPSE_SHARE:.0%} of chance for {COLLAPSE_STEPS} steps, "
            "the embeddings have collapsed: lower optim.learning_rate, raise optim.warmup or "
            "data.batch_size, and see that captions tell the pieces apart"
        ]

    def baseline(self, train_data: Iterator[Batch], held_out: Iterator[Batch]) -> Metrics:
        """What embeddings that say nothing score on held-out batches: the loss where they are all
        equal (not for SLAP), the in-batch accuracy where they are random."""
        del train_data
        costs, hits = [], []
        for batch, _ in zip(held_out, range(BASELINE_BATCHES)):
            groups = self._groups(batch)
            if self.config.loss.kind == "triplet":
                costs.append(jnp.asarray(self.config.loss.margin))
            elif self.config.loss.kind != "slap":
                costs.append(losses.chance(self.config.loss.kind, groups))
            rivals = groups[:, None] != groups[None]
            hits.append(jnp.mean(1.0 / (1.0 + rivals.sum(axis=1))))
        found = {"chance_accuracy": jnp.stack(hits).mean()}
        return found | ({"chance_loss": jnp.stack(costs).mean()} if costs else {})

    def _apply(
        self,
        params: Params,
        variables: Params,
        batch: Batch,
        key: Key,
        train: bool,
        method: Any = None,
    ) -> tuple[Any, Params]:
        """Output, and `variables` with the batch norms' running statistics after it."""
        rngs = dict(zip(RNG_STREAMS, jax.random.split(key, len(RNG_STREAMS))))
        if self.pairs_audio:
            method = JointModel.pair
        own = {name: variables[name] for name in COLLECTIONS if name in variables}
        output, updated = self.model.apply(
            {"params": params, **own},
            *self._inputs(batch),
            train=train,
            rngs=rngs,
            method=method,
            mutable=list(own) if train else [],
        )
        return output, {**variables, **flax.core.unfreeze(updated)}

    def _inputs(self, batch: Batch) -> tuple[Array, ...]:
        names = ("audio", "other") if self.pairs_audio else ("audio", "text", "text_mask")
        return tuple(batch[name] for name in names)

    def _groups(self, batch: Batch) -> Array:
        if not self.config.loss.mask_duplicates:
            return jnp.arange(batch["audio"].shape[0], dtype=jnp.int32)
        if self.pairs_audio:
            return jnp.asarray(batch["piece"])
        return losses.groups_of(jnp.asarray(batch["text"]), jnp.asarray(batch["text_mask"]))

    def _matching(self, output: JointOutput, groups: Array) -> tuple[Array, Metrics]:
        kind, chunk = self.config.loss.kind, self.config.loss.chunk
        if kind == "triplet":
            margin = self.config.loss.margin
            objective = losses.triplet(output.audio, output.text, margin, groups, chunk)
            return objective, {"matching": objective, "spread": _spread(output)}
        scale = output.log_scale
        metrics = {"chance": losses.chance(kind, groups)}
        if kind == "sigmoid":
            bias = output.score_bias
            objective = losses.sigmoid(output.audio, output.text, scale, bias, groups, chunk)
            metrics["score_bias"] = bias
        else:
            objective = losses.contrastive(output.audio, output.text, scale, groups, chunk)
            scale = jnp.minimum(scale, losses.MAX_LOG_SCALE)
        return objective, metrics | {"matching": objective, "temperature": jnp.exp(-scale)}

    def _slap(self, output: JointOutput, target: tuple[Array, Array]) -> tuple[Array, Metrics]:
        objective, inter, intra = losses.slap(
            (output.audio, output.text), target, self.config.loss.intra_weight
        )
        metrics = {"matching": objective, "inter": inter, "intra": intra}
        return objective, metrics | {"spread": _spread(output)}

    def _collapsed(self, metrics: Metrics) -> Array:
        # A triplet loss is near its margin, what a collapse costs, from the start: the nearest of
        # many negatives is hardly farther than the positive.
        if self.config.loss.kind in ("slap", "triplet"):
            return metrics["spread"] < COLLAPSE_SHARE
        chance = metrics["chance"]
        return jnp.abs(metrics["matching"] - chance) <= COLLAPSE_SHARE * chance


def _spread(output: JointOutput) -> Array:
    """1 - mean cosine of two embeddings of a side, of the one that has less."""
    spread = [1.0 - jnp.sum(jnp.square(x.mean(axis=0))) for x in (output.audio, output.text)]
    return jnp.minimum(*spread)
