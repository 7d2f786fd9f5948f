"""What the trainer calls to train a model over stems: a denoiser, or a separator by regression."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mgen import manifest
from mgen.diffusion.process import Denoiser
from mgen.diffusion.trajectory import draw_noise
from mgen.errors import UserError
from mgen.metrics.audio import si_sdr
from mgen.nn.spans import example_keys
from mgen.stems import condition as conditions
from mgen.stems import loss as stems_loss
from mgen.stems.condition import StemCondition
from mgen.stems.latent_sample import LatentStems
from mgen.stems.latents import Scale, StemLatents
from mgen.stems.model import StemsConfig, denoiser, init_params, make_network
from mgen.stems.sample import FrozenStems
from mgen.stems.settings import DIRAC, TRACK
from mgen.train import task
from mgen.train.checkpoint import Trained, load_trained, make_task
from mgen.train.state import TrainState
from mgen.typing import Array, Batch, Float, Key, Metrics, Params

# Thirds of the training noise levels, from little noise to much.
BANDS = ("low", "middle", "high")
BASELINE_BATCHES = 64
# Levels of each band that the baseline's loss is the mean over.
BASELINE_LEVELS = 100
# Deviations of the stems, of noise under which nothing of them is heard.
ALONE = 50.0
# Mean square of a stem below which it counts as silent (-60 dB).
SILENCE = 1e-6


class Task(task.Task):
    """Stems from noise or, where `model.kind` is "separator", from their mix.

    A denoiser is trained on batches of {"stems": float32 [B, S, T, C]}, with
    `diffusion.count_missing` False also {"stem_mask": bool [B, S]}; a separator on {"stems",
    "mix": float32 [B, T, C]}; a denoiser also on the mix with `diffusion.beside_mix`, a Transformer
    over latents on those of `mgen.stems.condition.FRAMES` that it reads.

    Reads from the config, beside what every family has:
      stems: names, sample_rate (Hz), channels.
      model: kind, and the fields of its config, see `mgen.stems.model.NETWORKS`.
      diffusion (of a denoiser): see `StemsConfig`.
      codec (of a Transformer): the experiment of the codec whose latents it is of.
      latents (of a Transformer): hop (samples a frame), codec (workdir of that codec), scale
        (folder that `mgen measure_latents` wrote), dtype (of the codec's activations where training
        encodes).
      loss (of a separator): spectral and windows, see `mgen.stems.loss.separation`.
    """

    family = "stems"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.stems_config = StemsConfig.from_experiment(config)
        self.diffusion = self.stems_config.diffusion
        # Of the codec whose latents the model is of.
        self.codec = make_task(config.codec) if self.stems_config.latent_hop else None
        self._check()
        if self.codec is not None:
            self.encoder = self._encoder()

    def _encoder(self) -> nn.Module:
        """The codec as training encodes with it."""
        config = self.config.codec.copy_and_resolve_references()
        with config.unlocked():
            own = config.model.get("dtype", "float32")
            config.model.dtype = self.config.latents.get("dtype", own)
        return make_task(config).autoencoder()

    def _check(self) -> None:
        data, own = self.config.data, self.stems_config
        for field, found, expected in (
            ("view", data.view, "stems"),
            ("sample_rate", data.sample_rate, own.sample_rate),
            ("channels", data.channels, own.channels),
            ("stems", tuple(data.stems), own.names),
        ):
            if found != expected:
                raise UserError(f"data.{field} is {found!r}, expected the model's {expected!r}")
        if self.codec is not None:
            own_shape = dict(
                sample_rate=own.sample_rate,
                channels=own.channels,
                hop=own.latent_hop,
                latent_dim=own.shape[2],
            )
            manifest.require(self.codec.manifest(), "config.codec", **own_shape)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        config = self.stems_config
        mix = (batch_size, config.samples, config.channels)
        stems = (batch_size, config.stems, *mix[1:])
        spec = {"stems": jax.ShapeDtypeStruct(stems, jnp.float32)}
        if config.separates or config.beside_mix:
            spec["mix"] = jax.ShapeDtypeStruct(mix, jnp.float32)
        if not config.separates and not config.count_missing:
            spec["stem_mask"] = jax.ShapeDtypeStruct(stems[:2], jnp.bool_)
        if self.codec is not None:
            network: Any = config.network
            spec |= conditions.frame_inputs(network, batch_size, config.shape[1])
        return spec

    def manifest(self) -> dict[str, Any]:
        config = self.stems_config
        return {
            "stems": list(config.names),
            "sample_rate": config.sample_rate,
            "channels": config.channels,
            "samples": config.samples,
            "hop": config.hop,
        }

    def init_variables(self, key: Key) -> dict[str, Params]:
        variables = {"params": init_params(self.stems_config, key)}
        if self.codec is None:
            return variables
        # Their place; `warm_start` brings what was trained and measured.
        shapes = jax.eval_shape(self.codec.init_variables, key)
        width = self.stems_config.shape[2]
        return variables | {
            "codec": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes)),
            "scale": {"mean": jnp.zeros(width), "std": jnp.ones(width)},
        }

    def parents(self) -> dict[str, str]:
        return {} if self.codec is None else {"codec": self._trained_codec.fingerprint}

    def warm_start(self, state: TrainState) -> TrainState:
        """Puts the codec and the scale of its latents in place."""
        if self.codec is None:
            return state
        trained = self._trained_codec
        scale = Scale.load(self.config.latents.scale, trained.fingerprint)
        if len(scale.mean) != self.stems_config.shape[2]:
            raise UserError(
                f"{self.config.latents.scale}: {len(scale.mean)} channels, expected "
                f"{self.stems_config.shape[2]}"
            )
        found = {"params": trained.params, **trained.variables}
        codec = {name: found[name] for name in state.variables["codec"]}
        variables = {"codec": codec, "scale": {"mean": scale.mean, "std": scale.std}}
        return dataclasses.replace(state, variables=jax.tree.map(jnp.asarray, variables))

    @functools.cached_property
    def _trained_codec(self) -> Trained:
        workdir = self.config.latents.codec
        if not workdir:
            raise UserError("latents.codec is empty, expected the workdir of a codec with latents")
        trained = load_trained(workdir, self.config.codec.family)
        expected = self.config.codec.model.to_dict()
        manifest.require({"model": trained.config.model.to_dict()}, workdir, model=expected)
        return trained

    def latents(self, variables: Params) -> StemLatents:
        """The codec and the scale that a state holds."""
        assert self.codec is not None
        return StemLatents(self.codec.autoencoder(), variables["codec"], **variables["scale"])

    def loss(
        self, params: Params, variables: Params, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, tuple[Metrics, Params]]:
        """In evaluation a denoiser's is the mean over the noise levels of each of `BANDS`, and
        "loss_low", "loss_middle", "loss_high" are those: each example has a level in each. One
        that reads the mix has also what `_expected` says."""
        if self.stems_config.separates:
            total, metrics = self._separation(params, batch, train)
            return total, (metrics, variables)
        losses = self._denoising(params, variables, batch, key, train)
        if train:
            return losses(0.0, 1.0), ({}, variables)
        bands = jax.lax.map(lambda i: losses(i / 3, (i + 1) / 3), jnp.arange(len(BANDS)))
        metrics = {f"loss_{name}": value for name, value in zip(BANDS, bands)}
        if self.stems_config.beside_mix and self.codec is None:
            metrics |= self._expected(params, batch, key)
        return jnp.mean(bands), (metrics, variables)

    def _expected(self, params: Params, batch: Batch, key: Key) -> Metrics:
        """SI-SDR and SI-SDRi in dB, as of a separator, of what is to be expected of the stems given
        their mix: the estimate from noise alone."""
        stems, mix = batch["stems"], batch["mix"]
        level = jnp.full((1, 1, 1, 1), ALONE * self.stems_config.sigma_data)
        noise = draw_noise(example_keys(key, len(stems)), stems.shape[1:])
        estimate = denoiser(self.stems_config, params, mix=mix[:, None])(level * noise, level)
        scores, mix_scores = separation_scores(stems, estimate, mix)
        return {"si_sdr": scores, "si_sdri": scores - mix_scores}

    def sample(self, state: TrainState, batch: Batch, key: Key) -> Array:
        """The mixes of a batch taken apart, in the way that is the default of `mgen separate`."""
        mixes, params = jnp.sum(batch["stems"], axis=1), state.inference_params
        if self.stems_config.separates:
            network: Any = make_network(self.stems_config)
            return network.apply({"params": params}, mixes)
        count = mixes.shape[0]
        given: Any = mixes[:, None], jax.random.split(key, count), jnp.zeros(count, jnp.int32)
        if self.codec is None:
            model = FrozenStems.from_trained(self.config, params, state.variables)
            likelihood = TRACK if model.beside_mix else DIRAC
            return model.separate_windows(*given, likelihood=likelihood)
        codec = self.codec.autoencoder()
        latents = LatentStems.from_trained(self.config, params, state.variables, codec)
        return latents.separate_windows(*given)

    def _denoising(
        self, params: Params, variables: Params, batch: Batch, key: Key, train: bool
    ) -> Callable[[Array | float, Array | float], Array]:
        """The mean loss at the noise levels between two of their quantiles."""
        config, keys = self.stems_config, example_keys(key, batch["stems"].shape[0])
        stems, denoise = self._known(params, variables, batch, keys, train)

        def losses(low: Array | float, high: Array | float) -> Array:
            found = stems_loss.denoising(
                denoise,
                stems,
                keys,
                self._counted(batch),
                times=stems_loss.Part(self.diffusion.levels, low, high),
                weight=self.diffusion.weight,
                per_track=config.per_track,
                given=config.given,
                one_level=config.one_level,
            )
            return jnp.mean(found)

        return losses

    def _known(
        self, params: Params, variables: Params, batch: Batch, keys: Key, train: bool
    ) -> tuple[Array, Denoiser]:
        """What is noised, and its denoiser: of stems, or of latents, which is told which tracks
        there are, what is known of the frames and, of a share of the examples, the mix."""
        config, stems = self.stems_config, batch["stems"]
        own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1)
        shown = jax.vmap(lambda key: jax.random.bernoulli(key, config.beside_mix))(own)
        mix = batch["mix"][:, None] if config.beside_mix else None
        if self.codec is None:
            if mix is not None:
                mix = jnp.where(shown[:, None, None, None], mix, 0.0)
            return stems, denoiser(config, params, mix=mix)
        latents = dataclasses.replace(self.latents(variables), codec=self.encoder)
        present = self._counted(batch)
        if mix is not None:
            mix = latents.encode(mix)
            present = jnp.concatenate([shown[:, None], present], axis=1)
        network: Any = config.network
        batch_size, tracks = present.shape
        frames = conditions.frame_inputs(network, batch_size, config.shape[1])
        condition = StemCondition(present=present, **{name: batch[name] for name in frames})
        condition = conditions.complete(network, condition, batch_size, tracks, config.shape[1])
        if train:
            rates = config.condition_dropout, config.input_dropout
            condition = conditions.drop(network, keys, condition, *rates)
        return latents.encode(stems), denoiser(config, params, condition, mix)

    def _separation(self, params: Params, batch: Batch, train: bool) -> tuple[Array, Metrics]:
        """In evaluation also SI-SDR and what it gains over the mix, in dB, of the stems that sound
        together with others."""
        stems, mix = batch["stems"], batch["mix"]
        estimate: Any = make_network(self.stems_config).apply({"params": params}, mix)
        total = jnp.mean(stems_loss.separation(stems, estimate, **self._loss_options))
        if train:
            return total, {}
        scores, mix_scores = separation_scores(stems, estimate, mix)
        return total, {"si_sdr": scores, "si_sdri": scores - mix_scores}

    @property
    def _loss_options(self) -> dict[str, Any]:
        loss = self.config.loss
        return dict(spectral=loss.spectral, windows=tuple(loss.windows))

    def _counted(self, batch: Batch) -> Array:
        """bool [B, S]: stems that the loss counts."""
        if self.stems_config.count_missing:
            return jnp.ones(batch["stems"].shape[:2], bool)
        return batch["stem_mask"]

    def baseline(self, train_data: Iterator[Batch], held_out: Iterator[Batch]) -> Metrics:
        """Of a denoiser: "wiener_loss" and that of each band, of the filter of
        `mgen.stems.loss.wiener_loss` that knows the mean spectrum of each stem in training. Of a
        separator: loss of an equal share of the mix for each stem, SI-SDR (dB) of the mix. Nothing
        of a model of latents."""
        if self.stems_config.separates:
            return self._shares(itertools.islice(held_out, BASELINE_BATCHES))
        if self.codec is not None:
            return {}
        config = self.stems_config
        (known, _), (power, count) = (
            self._spectra(itertools.islice(data, BASELINE_BATCHES))
            for data in (train_data, held_out)
        )
        u = (np.arange(len(BANDS) * BASELINE_LEVELS) + 0.5) / (len(BANDS) * BASELINE_LEVELS)
        sigma = np.asarray(self.diffusion.levels.quantile(jnp.asarray(u)), np.float64)
        losses = stems_loss.wiener_loss(known, power, sigma, config.sigma_data)
        bands = (losses @ (count / count.sum())).reshape(len(BANDS), -1).mean(axis=1)
        found = {f"wiener_loss_{name}": value for name, value in zip(BANDS, bands)}
        return {"wiener_loss": bands.mean(), **found}

    def _spectra(self, batches: Iterator[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Mean power [S, M] of each stem, and the number of examples that have it [S]."""
        total: Any = 0.0
        count: Any = 0
        for batch in batches:
            counted = np.asarray(self._counted(batch))
            total = total + stems_loss.power_spectrum(np.asarray(batch["stems"]), counted)
            count = count + counted.sum(axis=0)
        return total / np.maximum(count, 1)[:, None], count

    def _shares(self, batches: Iterator[Batch]) -> Metrics:
        losses, scores = [], []
        for batch in batches:
            stems, mix = batch["stems"], batch["mix"]
            share = jnp.broadcast_to(mix[:, None] / self.stems_config.stems, stems.shape)
            losses.append(np.mean(stems_loss.separation(stems, share, **self._loss_options)))
            scores.append(separation_scores(stems, share, mix)[1])
        return {"share_loss": np.mean(losses), "mix_si_sdr": np.mean(scores)}

    def summaries(self, state: TrainState, batch: Batch, key: Key) -> dict[str, Any]:
        """Of the first four examples each stem, and what the model makes of the mix or of the stem
        under noise of the median level."""
        first = jax.tree.map(lambda x: x[:4], batch)
        weights = state.inference_params, state.variables
        estimates = np.asarray(self._estimate(*weights, first, key))
        sounds = {}
        for number, name in enumerate(self.stems_config.names):
            for kind, stems in (("target", first["stems"]), ("estimate", estimates)):
                audio = np.asarray(stems)[:, number], self.stems_config.sample_rate
                sounds[f"audio/{name}_{kind}"] = audio
        return sounds

    @functools.cached_property
    def _estimate(self) -> Any:
        config = self.stems_config
        network: Any = make_network(config)

        def estimate(params: Params, variables: Params, batch: Batch, key: Key) -> Array:
            if config.separates:
                return network.apply({"params": params}, batch["mix"])
            keys = example_keys(key, batch["stems"].shape[0])
            stems, denoise = self._known(params, variables, batch, keys, train=False)
            sigma = self.diffusion.levels.quantile(jnp.full((1, 1, 1, 1), 0.5))
            found = denoise(stems + sigma * draw_noise(keys, stems.shape[1:]), sigma)
            return found if self.codec is None else self.latents(variables).decode(found)

        return jax.jit(estimate)


def separation_scores(
    stems: Float[Array, "B S T C"], estimate: Float[Array, "B S T C"], mix: Float[Array, "B T C"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """SI-SDR in dB of the estimate, and of the mix in its place: means over the stems that sound
    in examples where two do; 0 where there are none."""
    batch, count = stems.shape[:2]
    energy = jnp.mean(jnp.square(stems), axis=(2, 3))
    mixes = jnp.broadcast_to(mix[:, None], stems.shape)
    sounding = energy > SILENCE
    sounding = sounding & (jnp.sum(sounding, axis=1, keepdims=True) > 1)
    reference, *others = (x.reshape(batch, count, -1) for x in (stems, estimate, mixes))
    scores = [si_sdr(reference, other, zero_mean=False) for other in others]
    size = jnp.maximum(jnp.sum(sounding), 1)
    ours, theirs = (jnp.sum(jnp.where(sounding, score, 0.0)) / size for score in scores)
    return ours, theirs
