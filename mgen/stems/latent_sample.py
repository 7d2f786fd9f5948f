"""Inference with a model over latents: audio in, audio out, `FrozenStems` on the latents between.

Example:
    model = LatentStems.from_trained(config, params, variables, codec)
    stems = model.generate(seconds=20.0, seeds=[0, 1])                    # [B, S, T, C]
    stems = model.separate(mix, seeds=[0])                                # through the decoder
    stems = model.separate(mix, seeds=[0], through="track")               # beside the mix
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgen.audio.resample import num_samples
from mgen.diffusion.guidance import guided, stacked
from mgen.diffusion.samplers import sample
from mgen.errors import UserError
from mgen.stems import condition as conditions
from mgen.stems import mixture
from mgen.stems.condition import StemCondition
from mgen.stems.latents import StemLatents
from mgen.stems.model import StemsConfig, denoiser
from mgen.stems.sample import START, FrozenStems
from mgen.stems.separating import STATIC, OnStep, Seeds, Separating, layout
from mgen.stems.settings import SamplingConfig
from mgen.stems.windows import positional_noise
from mgen.typing import Array, Float, Int, Key, Params, ndarray

# How a mix is taken apart: see `mgen.stems.mixture`.
THROUGH = ("decoder", "track")
# Frames that are decoded at once.
PART = 64
# Of what the model is told.
GUIDANCE = 3.0
# Of latents of variance 1.
SAMPLING = SamplingConfig(steps=100, sigma_min=1e-2, sigma_max=20.0, sampler="dpmpp_2m_sde")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ToldStems(FrozenStems):
    """A model over latents that is told more of a song than its tracks.

    Attributes:
      config: what the model is.
      condition: of the whole song. guidance: how far the estimate goes beyond that of the model
        that is told nothing (1: not at all); an array, so that none is compiled anew.
    """

    config: StemsConfig = dataclasses.field(metadata=STATIC)
    condition: StemCondition
    guidance: Array

    def at(self, begin: int) -> "FrozenStems":
        network: Any = self.config.network
        own = conditions.window(network, self.condition, begin, self.samples)
        return dataclasses.replace(self, condition=own)

    def denoise(self, x: Array, t: Array, mix: Array | None = None) -> Array:
        assert mix is None  # see `LatentStems.separate_windows`
        network: Any = self.config.network
        tracks = x.shape[1] + bool(self.config.beside_mix)
        told = conditions.complete(network, self.condition, x.shape[0], tracks, x.shape[2])
        estimates = (
            denoiser(self.config, self.params, condition)
            for condition in (conditions.absent(network, told), told)
        )
        return guided(stacked(*estimates), self.guidance)(x, t)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentStems(Separating):
    """A trained diffusion model over latents with the codec that they are of.

    Attributes:
      config: what the model is. params: of its network.
      latents: the codec; context: frames on either side that the audio of a frame depends on.
    """

    # The gradient through the decoder takes the memory of many windows.
    windows_at_once: ClassVar[int] = 1

    config: StemsConfig = dataclasses.field(metadata=STATIC)
    context: int = dataclasses.field(metadata=STATIC)
    params: Params
    latents: StemLatents

    @classmethod
    def from_trained(
        cls, config: Any, params: Params, variables: Params, codec: nn.Module
    ) -> "LatentStems":
        """From an experiment's config, the state of its training, which holds the codec's weights,
        and the codec's module (`Task.autoencoder`).

        Raises:
          UserError: the config is not one of latents.
        """
        own = StemsConfig.from_experiment(config)
        if not own.latent_hop:
            raise UserError(f"model.kind is {config.model.kind!r}, expected 'dit'")
        scale = {name: jnp.asarray(value) for name, value in variables["scale"].items()}
        return cls(
            **layout(own),
            config=own,
            context=codec.decoder_context,
            params=params,
            latents=StemLatents(codec, variables["codec"], **scale),
        )

    def frames(self, condition: StemCondition | None = None, guidance: float = 1.0) -> FrozenStems:
        """The model over latents alone; a sample of it is a frame, and so is a second.

        Args:
          condition, guidance: see `ToldStems`.
        """
        _, samples, channels = self.config.shape
        fields: dict[str, Any] = dict(
            names=self.names,
            sample_rate=1,
            channels=channels,
            samples=samples,
            hop=self.config.network.hop,
            per_track=self.config.per_track,
            estimate=functools.partial(denoiser, self.config),
            params=self.params,
        )
        if condition is None:
            return FrozenStems(**fields)
        weight = jnp.asarray(guidance, jnp.float32)
        return ToldStems(**fields, config=self.config, condition=condition, guidance=weight)

    def generate(
        self,
        *,
        seconds: float,
        seeds: Seeds,
        sampling: SamplingConfig = SAMPLING,
        condition: StemCondition | None = None,
        guidance: float = GUIDANCE,
        **settings: Any,
    ) -> Float[ndarray, "B S T C"]:
        """All stems, from nothing; see `FrozenStems.generate`.

        Args:
          condition: text and, for every frame, chords, beats, melody; None where nothing is wanted.
          guidance: see `ToldStems`.
        """
        samples = num_samples(seconds, self.sample_rate)
        frames = math.ceil(samples / self.config.latent_hop)
        model = self.frames(condition, guidance)
        made = model.generate(seconds=frames, seeds=seeds, sampling=sampling, **settings)
        return np.asarray(_decoded(self, made))[:, :, :samples]

    def arrange(
        self,
        given: Mapping[str, Float[ndarray, "B T C"]],
        targets: Sequence[str],
        *,
        seeds: Seeds,
        sampling: SamplingConfig = SAMPLING,
        condition: StemCondition | None = None,
        guidance: float = GUIDANCE,
        **settings: Any,
    ) -> Float[ndarray, "B targets T C"]:
        """The stems `targets` that go with the given ones; see `FrozenStems.arrange` and
        `generate`."""
        known, length = {}, None
        for name, audio in given.items():
            audio = np.asarray(audio, np.float32)
            self.check(f"stem {name}", audio, (len(seeds), length, self.channels))
            length = audio.shape[1]
            known[name] = np.asarray(_encoded(self, self._filled(audio)))
        model = self.frames(condition, guidance)
        made = model.arrange(known, targets, seeds=seeds, sampling=sampling, **settings)
        return np.asarray(_decoded(self, made))[:, :, :length]

    def separate_windows(
        self,
        mix: Float[ndarray, "N 1 T C"],
        keys: Key,
        first: Int[ndarray, " N"],
        *,
        on_step: OnStep | None = None,
        through: str = "decoder",
        sampling: SamplingConfig = SAMPLING,
    ) -> Float[Array, "N S T C"]:
        """As `Separating.separate_windows`.

        Args:
          through: "decoder": latents whose audio sums to the mix; "track": given the latents of the
            mix, of a model trained with `beside_mix`.
        """
        if through not in THROUGH or (through == "track" and not self.config.beside_mix):
            known = THROUGH if self.config.beside_mix else THROUGH[:1]
            raise UserError(f"through {through!r}, expected one of {known} with this model")
        return separated(
            self, mix, keys, first, through=through, sampling=sampling, on_step=on_step
        )

    def generate_windows(
        self, keys: Key, first: Int[Array, " N"], *, sampling: SamplingConfig = SAMPLING
    ) -> Float[Array, "N S T C"]:
        """As `FrozenStems.generate_windows`."""
        return _decoded(self, self.frames().generate_windows(keys, first, sampling=sampling))

    def _filled(self, audio: Float[ndarray, "B T C"]) -> Float[ndarray, "B t C"]:
        """To whole frames, with silence."""
        return np.pad(audio, ((0, 0), (0, -audio.shape[1] % self.config.latent_hop), (0, 0)))


@functools.partial(jax.jit, static_argnames=("through", "sampling", "on_step"))
def separated(
    model: LatentStems,
    mix: Float[Array, "B 1 T C"],
    keys: Key,
    first: Int[Array, " B"],
    *,
    through: str,
    sampling: SamplingConfig,
    on_step: OnStep | None = None,
) -> Float[Array, "B S T C"]:
    """Stems of a window of a mix; see `LatentStems.separate_windows`.

    Through the decoder the deviation of the measurement is what the codec leaves of the mix itself,
    and the gain of the decoder is that at shares of the mix.
    """
    latents, config = model.latents, model.config
    shape = (mix.shape[0], *config.shape)
    noise = positional_noise(keys, first, shape, config.network.hop)
    if through == "track":
        denoise = denoiser(config, model.params, mix=latents.encode(mix))
    else:
        measure = mixture.mixture(latents.decode, PART, model.context)
        shares = jnp.broadcast_to(latents.encode(mix / config.stems), shape)
        left = mixture.in_parts(latents.decode, PART, model.context)(latents.encode(mix)) - mix
        denoise = mixture.consistent(
            denoiser(config, model.params),
            measure,
            mix,
            gram=mixture.gram(measure, shares, keys),
            std=jnp.sqrt(jnp.mean(jnp.square(left), axis=(1, 2, 3), keepdims=True)),
            sigma_data=config.sigma_data,
        )

    def constrain(x: Array, t: Array, i: Array) -> Array:
        if on_step is not None:
            jax.debug.callback(on_step, i, ordered=True)
        return x

    times = jnp.asarray(sampling.times(), jnp.float32)
    x = times[0] * noise(jnp.uint32(START), 0)
    solver = sampling.solver()
    x = sample(denoise, x, times, sampler=solver, noise=noise, constrain=constrain)
    return mixture.in_parts(latents.decode, PART, model.context)(x)


@jax.jit
def _encoded(model: LatentStems, audio: Float[Array, "B T C"]) -> Float[Array, "B F D"]:
    return model.latents.encode(audio[:, None])[:, 0]


@jax.jit
def _decoded(model: LatentStems, latents: Float[Array, "B S F D"]) -> Float[Array, "B S T C"]:
    return mixture.in_parts(model.latents.decode, PART, model.context)(latents)
