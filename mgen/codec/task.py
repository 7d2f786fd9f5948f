"""Training a codec: generator and discriminator in one jitted step.

The generator runs forward once. Each loss gives its gradient at the output audio; their weighted
(or balanced) sum is pulled back through the generator together with the bottleneck's own terms. The
discriminator is stepped on the same output with the gradient stopped; both sides see the parameters
from before the step (simultaneous descent), so its forward pass is shared too.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mgen.audio import mel
from mgen.codec import balancer, loss
from mgen.codec.discriminators import Discriminator, DiscriminatorConfig
from mgen.codec.model import Codec, CodecConfig, CodecOutput, init_codec
from mgen.errors import UserError
from mgen.metrics.audio import mel_distance, si_sdr
from mgen.train import optim, task
from mgen.train.state import TrainState, ema_init, ema_update
from mgen.typing import Array, Batch, Key, Metrics, Params

RNG_STREAMS = ("codebook", "dropout", "sample")
# Perplexity under this share of what the batch allows is called a collapse.
COLLAPSE_SHARE = 0.05
# A hinge loss this small says that real and generated audio are told apart without effort.
DISCRIMINATOR_WINS = 0.02
# Mean square of a reference below which SI-SDR says nothing (-60 dB).
SILENCE = 1e-6


class Task(task.Task):
    """A codec with its losses; `config.discriminator` without any sub-discriminator trains it
    without a GAN.

    `params` is {"generator": ..., "discriminator": ...} (the latter only with a GAN), `opt_state`
    likewise; `ema` averages the generator alone. `variables` holds the model's collections and,
    with a balancer, its averages under "balancer".
    """

    family = "codec"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.codec_config = CodecConfig.from_config(config.model)
        self.codec = Codec(self.codec_config)
        self.discriminator_config = DiscriminatorConfig.from_config(config.discriminator)
        self.discriminator = Discriminator(self.discriminator_config)
        self.adversarial = self.discriminator_config.count > 0
        wanted = bool(config.loss.adversarial.weight or config.loss.features.weight)
        if wanted != self.adversarial:
            raise UserError(
                "config.loss: adversarial.weight and features.weight are "
                f"{'set' if wanted else '0'} with {self.discriminator_config.count} "
                "sub-discriminators in config.discriminator; expected both or neither"
            )
        if self.adversarial:
            self.optimizer_d = optim.make_optimizer(config.optim_d, config.train.steps)

    @property
    def samples(self) -> int:
        """Length T of a training example."""
        return round(self.config.data.seconds * self.codec_config.sample_rate)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (batch_size, self.samples, self.codec_config.channels)
        return {"audio": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def manifest(self) -> dict[str, Any]:
        config = self.codec_config
        fields = {
            "sample_rate": config.sample_rate,
            "channels": config.channels,
            "hop": config.hop,
            "frame_rate": config.frame_rate,
            "bottleneck": config.bottleneck,
            "latent_dim": config.latent_dim,
        }
        if config.has_codes:
            fields |= {"codebooks": config.num_codebooks, "codebook_size": config.codebook_size}
        return fields

    def autoencoder(self) -> nn.Module:
        if self.codec_config.has_codes:
            raise UserError(
                f"model.bottleneck is {self.codec_config.bottleneck!r}, expected one without codes"
            )
        return self.codec

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        found = []
        perplexity = metrics.get("codebook_perplexity_min")
        frames = self.config.data.batch_size * self.samples // self.codec_config.hop
        if perplexity is not None:
            most = min(self.codec_config.codebook_size, frames)
            if perplexity < COLLAPSE_SHARE * most:
                found.append(
                    f"a codebook has collapsed: perplexity under {COLLAPSE_SHARE * most:.0f} of "
                    f"{most}; lower optim.learning_rate, set model.kmeans_iterations, raise "
                    "model.dead_code_threshold or loss.commitment.weight, or use larger batches"
                )
        if metrics.get("discriminator", 1.0) < DISCRIMINATOR_WINS and metrics.get("gan_active"):
            found.append(
                "the discriminator tells everything apart: lower optim_d.learning_rate or raise "
                "discriminator.update_every"
            )
        return found

    def generator_params(self, state: TrainState) -> Params:
        return state.params["generator"] if state.ema is None else state.ema

    def init_variables(self, key: Key) -> dict[str, Params]:
        """The codec's variables; "params" are the generator's."""
        return flax.core.unfreeze(init_codec(self.codec_config, key))

    def init(self, key: Key) -> TrainState:
        generator_key, discriminator_key = jax.random.split(key)
        variables = self.init_variables(generator_key)
        kept = functools.partial(optim.kept, self.config.optim)
        params = {"generator": kept(variables.pop("params"))}
        opt_state = {"generator": self.optimizer.init(params["generator"])}
        if self.adversarial:
            audio = jnp.zeros(self.batch_spec(1)["audio"].shape)
            params["discriminator"] = kept(
                self.discriminator.init(discriminator_key, audio)["params"]
            )
            opt_state["discriminator"] = self.optimizer_d.init(params["discriminator"])
        if self.config.loss.balancer.enabled:
            names = [n for n in loss.AUDIO_TERMS if self.config.loss[n].weight]
            variables["balancer"] = balancer.init(tuple(names))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=opt_state,
            variables=variables,
            ema=ema_init(params["generator"]) if self.config.optim.ema else None,
        )

    def train_step(self, state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Metrics]:
        grads, metrics, variables = self.gradients(
            state.params, {**state.variables, "step": state.step}, batch, key
        )
        variables = {name: value for name, value in variables.items() if name != "step"}
        params, opt_state = {}, {}
        params["generator"], opt_state["generator"] = _update(
            self.optimizer, grads["generator"], state, "generator"
        )
        metrics["grad_norm"] = optax.global_norm(grads["generator"])
        if self.adversarial:
            new = _update(self.optimizer_d, grads["discriminator"], state, "discriminator")
            old = state.params["discriminator"], state.opt_state["discriminator"]
            # Without its update Adam would still move along its momentum.
            due = self._discriminator_due(state.step)
            params["discriminator"], opt_state["discriminator"] = jax.tree.map(
                lambda a, b: jnp.where(due, a, b), new, old
            )
            metrics["grad_norm_discriminator"] = optax.global_norm(grads["discriminator"])
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            variables=variables,
            ema=ema_update(state.ema, params["generator"], self.config.optim.ema, state.step),
        )
        return state, metrics

    def micro_gradients(
        self, params: Params, variables: Params, batch: Batch, key: Key
    ) -> tuple[Params, Metrics, Params]:
        """Gradients {"generator", "discriminator"}; `variables` holds the number of the step
        too.
        """
        target, config = batch["audio"], self.config.loss

        def generate(generator: Params) -> tuple[tuple[Array, Array], tuple[CodecOutput, Params]]:
            output, updated = self._apply(generator, variables, target, key, train=True)
            return (output.audio, self._bottleneck_loss(output)), (output, updated)

        (estimate, bottleneck), pull_back, (output, updated) = jax.vjp(
            generate, params["generator"], has_aux=True
        )
        metrics, gradients, weights = {}, {}, {}
        for name, term in self._reconstruction(target).items():
            metrics[name], gradients[name] = jax.value_and_grad(term)(estimate)
            weights[name] = config[name].weight
        grads = {}
        if self.adversarial:
            gan = self._gan(params["discriminator"], target, estimate, variables["step"])
            grads["discriminator"], gan_metrics, gan_gradients, gan_weights = gan
            metrics |= gan_metrics
            gradients |= gan_gradients
            weights |= gan_weights
        metrics["loss"] = bottleneck + sum(
            metrics[name] * config[name].weight for name in loss.AUDIO_TERMS if name in metrics
        )
        if config.balancer.enabled:
            gradient, updated["balancer"], norms = balancer.balance(
                gradients,
                weights,
                variables["balancer"],
                config.balancer.decay,
                config.balancer.total_norm,
            )
            metrics |= {f"gradient_at_audio_{name}": norm for name, norm in norms.items()}
        else:
            gradient = sum(weights[name] * gradients[name] for name in gradients)
        (grads["generator"],) = pull_back((gradient, jnp.ones_like(bottleneck)))
        metrics |= self._bottleneck_metrics(output)
        return grads, metrics, updated

    def loss(
        self, params: Params, variables: Params, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, tuple[Metrics, Params]]:
        """The generator's losses but the adversarial ones; `params` are the generator's."""
        output, updated = self._apply(params, variables, batch["audio"], key, train)
        total, metrics = self._losses(batch["audio"], output)
        return total, (metrics, updated)

    def eval_step(self, state: TrainState, batch: Batch, key: Key) -> Metrics:
        """Losses without the adversarial ones, DAC's `mel_distance`, and `si_sdr` in dB over the
        examples that are not silent.
        """
        target = batch["audio"]
        params = self.generator_params(state)
        output, _ = self._apply(params, state.variables, target, key, train=False)
        total, metrics = self._losses(target, output)
        x, y = (jnp.moveaxis(audio, -1, 1) for audio in (target, output.audio))
        sounding = jnp.mean(jnp.square(x), axis=-1) > SILENCE
        ratio = jnp.where(sounding, si_sdr(x, y), 0.0)
        return {
            **metrics,
            "loss": total,
            "si_sdr": jnp.sum(ratio) / jnp.maximum(jnp.sum(sounding), 1),
            "mel_distance": jnp.mean(mel_distance(x, y, self.codec_config.sample_rate)),
        }

    def summaries(self, state: TrainState, batch: Batch, key: Key) -> dict[str, Any]:
        """The first four examples and their reconstructions: audio, and log-mel pictures one above
        the other.
        """
        target = batch["audio"][:4]
        variables = state.variables
        estimate = self._reconstruct(self.generator_params(state), variables, target, key)
        rate = self.codec_config.sample_rate
        pictures = [_mel_picture(audio, rate) for audio in (target, estimate)]
        return {
            "audio/target": (np.asarray(target), rate),
            "audio/reconstruction": (np.asarray(estimate), rate),
            "image/target_over_reconstruction": np.concatenate(pictures, axis=0),
        }

    @functools.cached_property
    def _reconstruct(self) -> Callable[..., Array]:
        return jax.jit(lambda *inputs: self._apply(*inputs, train=False)[0].audio)

    def _apply(
        self, generator: Params, variables: Params, audio: Array, key: Key, train: bool
    ) -> tuple[CodecOutput, Params]:
        """Output and `variables` after it; what is not the model's in them passes through."""
        own = {n: v for n, v in variables.items() if n not in ("balancer", "step")}
        rngs = dict(zip(RNG_STREAMS, jax.random.split(key, len(RNG_STREAMS))))
        inputs = {"params": generator, **own}
        output, updated = self.codec.apply(
            inputs, audio, train=train, rngs=rngs, mutable=list(own) if train else []
        )
        return output, {**variables, **flax.core.unfreeze(updated)}

    def _reconstruction(self, target: Array) -> dict[str, Callable[[Array], Array]]:
        return loss.reconstruction(self.config.loss, self.codec_config.sample_rate, target)

    def _losses(self, target: Array, output: CodecOutput) -> tuple[Array, Metrics]:
        terms = self._reconstruction(target)
        metrics = {name: term(output.audio) for name, term in terms.items()}
        total = sum(self.config.loss[name].weight * value for name, value in metrics.items())
        total += self._bottleneck_loss(output)
        return total, {**metrics, **self._bottleneck_metrics(output)}

    def _bottleneck_loss(self, output: CodecOutput) -> Array:
        weights = self.config.loss
        return (
            weights.commitment.weight * output.commitment
            + weights.codebook.weight * output.codebook_loss
            + weights.kl.weight * output.kl
        )

    def _bottleneck_metrics(self, output: CodecOutput) -> Metrics:
        if not self.codec_config.has_codes:
            return {"kl": output.kl} if self.codec_config.bottleneck == "vae" else {}
        perplexity, dead = output.extras["perplexity"], output.extras["dead_codes"]
        return {
            "commitment": output.commitment,
            "codebook_perplexity": jnp.mean(perplexity),
            "codebook_perplexity_min": jnp.min(perplexity),
            "dead_codes": jnp.mean(dead),
        }

    def _discriminator_due(self, step: Array) -> Array:
        settings = self.config.discriminator
        return (step >= settings.start) & (step % settings.update_every == 0)

    def _gan(
        self, discriminator: Params, target: Array, estimate: Array, step: Array
    ) -> tuple[Params, Metrics, dict[str, Array], dict[str, Any]]:
        """The discriminator's gradient; metrics, gradients at the audio and weights of the terms
        that the generator learns from.

        All of it is zero, and costs nothing, before `discriminator.start`.
        """
        config = self.config.loss
        since_start = step - self.config.discriminator.start
        ramp = jnp.clip((since_start + 1) / max(config.adversarial.ramp, 1), 0.0, 1.0)
        weights = {"adversarial": config.adversarial.weight * ramp}
        weights |= {"features": config.features.weight}
        weights = {name: w for name, w in weights.items() if config[name].weight}
        # Balanced terms need a gradient each; otherwise one pull back of their sum is enough.
        separate = config.balancer.enabled
        groups = {name: {name: 1.0} for name in weights} if separate else {"gan": weights}

        def active() -> tuple[Params, Metrics, dict[str, Array]]:
            return self._gan_gradients(discriminator, target, estimate, step, groups)

        def idle() -> tuple[Params, Metrics, dict[str, Array]]:
            return jax.tree.map(
                lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(active)
            )

        grads, metrics, gradients = jax.lax.cond(since_start >= 0, active, idle)
        metrics["gan_active"] = (since_start >= 0).astype(jnp.float32)
        return grads, metrics, gradients, weights if separate else {"gan": 1.0}

    def _gan_gradients(
        self,
        discriminator: Params,
        target: Array,
        estimate: Array,
        step: Array,
        groups: dict[str, dict[str, Any]],
    ) -> tuple[Params, Metrics, dict[str, Array]]:
        config = self.config.loss

        def judge(discriminator: Params, estimate: Array) -> tuple[Any, Any]:
            judge_one = functools.partial(self.discriminator.apply, {"params": discriminator})
            return judge_one(target), judge_one(estimate)

        verdicts, pull_back = jax.vjp(judge, discriminator, estimate)
        value, at_verdicts = jax.value_and_grad(
            lambda pair: loss.discriminator_loss(pair[0], pair[1], config.adversarial.form)
        )(verdicts)

        def discriminator_gradient() -> Params:
            return pull_back(at_verdicts)[0]

        def no_gradient() -> Params:
            return jax.tree.map(jnp.zeros_like, discriminator)

        due = self._discriminator_due(step)
        grads = jax.lax.cond(due, discriminator_gradient, no_gradient)

        terms: dict[str, Callable[[Any], Array]] = {
            "adversarial": lambda pair: loss.generator_loss(pair[1], config.adversarial.form),
            "features": lambda pair: loss.feature_matching(pair[0], pair[1], config.features.form),
        }
        metrics = {"discriminator": value}
        metrics |= {n: terms[n](verdicts) for n in terms if config[n].weight}
        metrics["logits_real"], metrics["logits_fake"] = (
            jnp.mean(jnp.stack([jnp.mean(v.logits) for v in side])) for side in verdicts
        )
        gradients = {}
        for group, weights in groups.items():
            at_verdicts = jax.grad(lambda pair, w=weights: sum(w[n] * terms[n](pair) for n in w))(
                verdicts
            )
            gradients[group] = pull_back(at_verdicts)[1]
        return grads, metrics, gradients


def _update(
    optimizer: optax.GradientTransformation, grads: Params, state: TrainState, name: str
) -> tuple[Params, Any]:
    updates, opt_state = optimizer.update(grads, state.opt_state[name], state.params[name])
    return optax.apply_updates(state.params[name], updates), opt_state


def _mel_picture(audio: Array, sample_rate: int) -> np.ndarray:
    """First channels [B, T, C] side by side: float [H, W, 3] in [0, 1], 80 dB from black to
    white.
    """
    spectrogram = mel.mel_spectrogram(
        audio[..., 0], sample_rate=sample_rate, n_fft=1024, hop=256, n_mels=80
    )
    decibels = 20 * np.log10(np.maximum(np.asarray(spectrogram), 1e-5))
    grey = np.clip((decibels - decibels.max()) / 80 + 1, 0, 1)
    tall = np.concatenate(np.pad(grey, ((0, 0), (0, 4), (0, 0))), axis=0).T[::-1]
    return np.repeat(np.repeat(tall, 2, axis=0)[..., None], 3, axis=-1)
