"""What the trainer calls to train a music encoder by masked prediction."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mgen.errors import UserError
from mgen.metrics import unigram
from mgen.nn.spans import example_keys
from mgen.semantic import loss as semantic_loss
from mgen.semantic import masking, targets
from mgen.semantic.config import SemanticConfig, TargetConfig
from mgen.semantic.model import Pretraining
from mgen.train import task
from mgen.train.state import TrainState
from mgen.typing import Array, Batch, Key, Metrics, Params

BASELINE_BATCHES = 64
# Perplexity under this share of what the batch allows is called a collapse.
COLLAPSE_SHARE = 0.02
FILLS = ("embedding", "noise")


class Task(task.Task):
    """Masked prediction on batches of {"audio": float32 [B, T, C]}, for targets of kind "codes"
    also {"codes": int32 [B, F, K]}.

    Reads from the config, beside what every family has:
      model: see `SemanticConfig`; targets: see `TargetConfig`.
      masking: probability and span (s) of hidden frames, fill ("embedding" or "noise"), noise_mix
        (probability of music of another example over one), noise_snr (dB, low and high).
      loss.cqt: weight of the constant-Q regression beside the cross-entropy.
      loss.visible: weight of both on the frames that are not hidden (HuBERT, equation 2: (1 -
        alpha) / alpha); 0 is none. With it upper layers also keep what sounds at the moment.
      codec (targets of kind "codes"): codebooks, codebook_size, frame_rate (Hz), sample_rate (Hz)
        of the codec that made the tokens.
    """

    family = "semantic"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.semantic_config = SemanticConfig.from_config(config.model)
        self.target_config = TargetConfig.from_config(config.targets)
        self._check()
        self.model = Pretraining(self.semantic_config, self.target_config)
        self.samples = round(config.data.seconds * config.data.sample_rate)
        self.span = max(1, round(config.masking.span * self.semantic_config.frame_rate))

    def _check(self) -> None:
        config, own = self.config, self.semantic_config
        targets.check(own, self.target_config)
        if config.data.sample_rate != own.sample_rate:
            raise UserError(
                f"data.sample_rate is {config.data.sample_rate}, expected the model's "
                f"{own.sample_rate}"
            )
        if config.masking.fill not in FILLS:
            raise UserError(
                f"masking.fill is {config.masking.fill!r}, expected one of {list(FILLS)}"
            )
        if not 0 < config.masking.probability < 1:
            raise UserError(
                f"masking.probability is {config.masking.probability}, expected a number between "
                "0 and 1"
            )
        if self.target_config.kind == "codes":
            codec, stack = config.codec, config.codec.frame_rate / own.frame_rate
            for name, found, expected in (
                ("codec.codebook_size", codec.codebook_size, self.target_config.codebook_size),
                ("targets.codebooks", self.target_config.codebooks, codec.codebooks * stack),
            ):
                if found != expected:
                    raise UserError(
                        f"{name} is {found}, expected {expected:g} ({codec.codebooks} codebooks of "
                        f"{self.target_config.codebook_size} at {codec.frame_rate:g} Hz, a trunk "
                        f"at {own.frame_rate:g} Hz)"
                    )

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (batch_size, self.samples, self.config.data.channels)
        spec = {"audio": jax.ShapeDtypeStruct(shape, jnp.float32)}
        if self.target_config.kind == "codes":
            codec = self.config.codec
            frames = round(self.config.data.seconds * codec.frame_rate)
            codes = (batch_size, frames, codec.codebooks)
            spec["codes"] = jax.ShapeDtypeStruct(codes, jnp.int32)
        return spec

    def manifest(self) -> dict[str, Any]:
        config = self.semantic_config
        return {
            "sample_rate": config.sample_rate,
            "channels": self.config.data.channels,
            "frame_rate": config.frame_rate,
            "dim": config.dim,
            "layers": config.layers,
        }

    def requires(self) -> dict[str, Any]:
        if self.target_config.kind != "codes":
            return {}
        return {"streams": {"acoustic": dict(self.config.codec)}}

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        perplexity = metrics.get("target_perplexity_min")
        frames = self.config.data.batch_size * self.semantic_config.frames(self.samples)
        most = min(self.target_config.codebook_size, frames)
        if perplexity is None or perplexity >= COLLAPSE_SHARE * most:
            return []
        return [
            f"the targets use few codes: perplexity {perplexity:.1f} of at most {most}; fit "
            "another codebook, change targets.seed or mel settings, or use larger batches"
        ]

    def generator_params(self, state: TrainState) -> Params:
        """The encoder's."""
        return state.inference_params["encoder"]

    def init_variables(self, key: Key) -> dict[str, Params]:
        # Parameters do not depend on the length.
        samples = self.semantic_config.samples(2)
        audio = jnp.zeros((1, samples, self.config.data.channels))
        variables = dict(self.model.init(key, audio))
        frozen = targets.init_variables(self.semantic_config, self.target_config)
        return variables | ({"targets": frozen} if frozen else {})

    def warm_start(self, state: TrainState) -> TrainState:
        """Puts the codebooks of "mel_rvq" in place."""
        if self.target_config.kind != "mel_rvq":
            return state
        vectors = targets.load_codebook(self.semantic_config, self.target_config)
        variables = {**state.variables, "targets": {"codebook": jnp.asarray(vectors)}}
        return dataclasses.replace(state, variables=variables)

    def loss(
        self, params: Params, variables: Params, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, tuple[Metrics, Params]]:
        settings, config, wanted = self.config.masking, self.semantic_config, self.target_config
        audio = batch["audio"]
        size, frames = audio.shape[0], config.frames(audio.shape[1])
        mask_key, fill_key, mix_key, dropout_key = jax.random.split(key, 4)
        codes = targets.codes(config, wanted, variables.get("targets", {}), batch)[:, :frames]
        mask = masking.span_mask(
            example_keys(mask_key, size), frames, settings.probability, self.span
        )
        inputs = audio
        if train and settings.noise_mix:
            keys = example_keys(mix_key, size)
            inputs = masking.mix_noise(keys, audio, settings.noise_mix, settings.noise_snr)
        fill = example_keys(fill_key, size) if settings.fill == "noise" else None
        own = {name: value for name, value in variables.items() if name != "targets"}
        output: Any = self.model.apply(
            {"params": params, **own}, inputs, mask, fill, train, rngs={"dropout": dropout_key}
        )
        logits, prediction = output
        # A codec may give a frame less than the trunk.
        frames = min(frames, codes.shape[1])
        mask = mask[:, :frames]
        logits, visible = logits[:, :frames], self.config.loss.visible
        nats, hits = semantic_loss.cross_entropy(logits, codes, mask)
        perplexity = semantic_loss.perplexity(codes, wanted.codebook_size)
        objective = jnp.mean(nats)
        metrics = {
            "cross_entropy": objective,
            "accuracy": jnp.mean(hits),
            "masked": jnp.mean(mask.astype(jnp.float32)),
            "target_perplexity": jnp.mean(perplexity),
            "target_perplexity_min": jnp.min(perplexity),
        }
        metrics |= {f"accuracy_{k}": value for k, value in enumerate(hits)}
        if visible:
            seen_nats, _ = semantic_loss.cross_entropy(logits, codes, ~mask)
            objective = objective + visible * jnp.mean(seen_nats)
            metrics["cross_entropy_visible"] = jnp.mean(seen_nats)
        if prediction is not None:
            target = targets.cqt(config, wanted, audio)[:, :frames]
            prediction = prediction[:, :frames]
            error, spread = semantic_loss.regression(prediction, target, mask)
            objective = objective + self.config.loss.cqt * error
            if visible:
                seen, _ = semantic_loss.regression(prediction, target, ~mask)
                objective = objective + visible * self.config.loss.cqt * seen
            metrics |= {"cqt_error": error, "cqt_explained": 1 - error / (spread + 1e-9)}
        return objective, (metrics, variables)

    def baseline(self, train_data: Iterator[Batch], held_out: Iterator[Batch]) -> Metrics:
        """Loss on held-out targets of what ignores the audio: the training codes' frequencies
        (add-one smoothed), and the mean constant-Q spectrum."""
        frozen = targets.init_variables(self.semantic_config, self.target_config)
        if self.target_config.kind == "mel_rvq":
            frozen = {"codebook": targets.load_codebook(self.semantic_config, self.target_config)}
        train, other = (
            self._statistics(frozen, itertools.islice(data, BASELINE_BATCHES))
            for data in (train_data, held_out)
        )
        found = {
            "unigram_cross_entropy": unigram.cross_entropy(
                train["counts"], other["counts"], [train["counts"].shape[1]]
            ).mean()
        }
        if self.target_config.cqt_bins:
            mean = train["sum"] / train["frames"]
            moments = other["squares"] - 2 * mean * other["sum"]
            found["mean_cqt_error"] = np.mean(moments / other["frames"] + np.square(mean))
        return found

    def _statistics(self, frozen: Params, batches: Iterator[Batch]) -> dict[str, np.ndarray]:
        """Sums over batches: "counts" [K, V] of the codes; "sum", "squares" [M] and "frames" of the
        constant-Q spectrum."""
        total: dict[str, np.ndarray] = {}
        for batch in batches:
            found = jax.device_get(self._batch_statistics(frozen, batch))
            found = {name: np.asarray(value, np.float64) for name, value in found.items()}
            total = {name: total.get(name, 0.0) + value for name, value in found.items()}
        return total

    @functools.cached_property
    def _batch_statistics(self) -> Any:
        config, wanted = self.semantic_config, self.target_config

        def statistics(frozen: Params, batch: Batch) -> dict[str, Array]:
            codes = targets.codes(config, wanted, frozen, batch)
            rows = codes.reshape(-1, codes.shape[-1])
            count = functools.partial(jnp.bincount, length=wanted.codebook_size)
            found = {"counts": jax.vmap(count, in_axes=1)(rows)}
            if wanted.cqt_bins:
                spectrum = targets.cqt(config, wanted, batch["audio"])
                found["sum"] = jnp.sum(spectrum, axis=(0, 1))
                found["squares"] = jnp.sum(jnp.square(spectrum), axis=(0, 1))
                found["frames"] = jnp.asarray(spectrum.shape[0] * spectrum.shape[1])
            return found

        return jax.jit(statistics)
