"""A model over stems as a whole: what the tracks are, which network, at which noise levels it is
trained; its parameters and its denoiser."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.audio.resample import num_samples
from mgen.diffusion.process import Denoiser
from mgen.errors import UserError
from mgen.stems.band_denoiser import BandDenoiser
from mgen.stems.condition import StemCondition
from mgen.stems.config import BandDenoiserConfig, DiTConfig, SeparatorConfig, UNetConfig
from mgen.stems.dit import DiT
from mgen.stems.mixture import beside_mix
from mgen.stems.objective import Objective
from mgen.stems.separator import Separator
from mgen.stems.unet import UNet1d
from mgen.typing import Array, Float, Key, Params

NetworkConfig: TypeAlias = UNetConfig | BandDenoiserConfig | DiTConfig | SeparatorConfig
# Kind -> its config and its module.
NETWORKS: dict[str, tuple[Any, Any]] = {
    "unet": (UNetConfig, UNet1d),
    "bands": (BandDenoiserConfig, BandDenoiser),
    "dit": (DiTConfig, DiT),
    "separator": (SeparatorConfig, Separator),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemsConfig:
    """What a model over stems is; noise levels and denoising are those of MSDM by default.

    Attributes:
      names: of the S stems, in the order of all arrays.
      sample_rate: Hz. channels: 1 or 2. samples: T of a training example.
      network: what its module is built from. A separator does without what follows.
      latent_hop: samples a frame of the latents that a Transformer is of; 0 of waveforms.
      beside_mix: share of the examples that are trained with their mix as a clean track in front
        of the stems; 0 leaves that track out. Needs a network with `per_track`. In the others that
        track is silent, of a Transformer absent.
      condition_dropout, input_dropout: shares of the examples of a Transformer that are told
        nothing of their frames, and of the others for each input, see `condition.drop`.
      objective: one of `mgen.stems.objective.OBJECTIVES`, which has also the next four.
      sigma_data: standard deviation of the stems that the preconditioning assumes.
      clip: bound of denoised audio on either side, None for none.
      noise_mean, noise_std: of log sigma in training.
      one_level: whether the stems of an example that are not clean have the same noise level, as in
        sampling, though the network has `per_track`.
      given: chance with which a stem is clean in training, a condition of the others; needs a
        network with `per_track`. One stem of an example always stays noised.
      count_missing: whether the loss counts a missing stem, as the silence that it is.
    """

    names: tuple[str, ...]
    sample_rate: int
    channels: int
    samples: int
    network: NetworkConfig
    latent_hop: int = 0
    beside_mix: float = 0.0
    condition_dropout: float = 0.0
    input_dropout: float = 0.0
    objective: str = "edm"
    sigma_data: float = 0.2
    clip: float | None = 1.0
    noise_mean: float = -3.0
    noise_std: float = 1.0
    one_level: bool = False
    given: float = 0.0
    count_missing: bool = True

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise UserError(f"stems.names is {list(self.names)}, expected names, each one once")
        hop = self.hop
        if not self.samples or self.samples % hop:
            near = max(1, round(self.samples / hop)) * hop
            raise UserError(
                f"data.seconds gives examples of {self.samples} samples, expected a multiple of "
                f"{hop} as the network takes them: data.seconds={near / self.sample_rate!r}"
            )
        for name in ("sigma_data", "noise_std"):
            if not getattr(self, name) > 0:
                raise UserError(f"diffusion.{name} is {getattr(self, name)}, expected more than 0")
        if not 0 <= self.given < 1 or (self.given and not self.per_track):
            raise UserError(
                f"diffusion.given is {self.given}, expected 0 or, with model.per_track, a number "
                "below 1"
            )
        transformer = isinstance(self.network, DiTConfig)
        if transformer != (self.latent_hop > 0):
            raise UserError(
                f"latents.hop is {self.latent_hop}, expected the samples a frame with model.kind "
                "'dit', and 0 without"
            )
        if not 0 <= self.beside_mix <= 1 or (self.beside_mix and not self.per_track):
            raise UserError(
                f"diffusion.beside_mix is {self.beside_mix}, expected 0 or, with model.per_track, "
                "a share"
            )

    @classmethod
    def from_experiment(cls, config: Mapping[str, Any]) -> "StemsConfig":
        """From the parts stems, model (its `kind` is one of `NETWORKS`), data and, but for a
        separator, diffusion of an experiment config.

        Raises:
          UserError: an unknown kind or field, a value that does not fit.
        """
        stems, fields = config["stems"], dict(config["model"])
        kind = fields.pop("kind")
        if kind not in NETWORKS:
            raise UserError(f"model.kind is {kind!r}, expected one of {sorted(NETWORKS)}")
        diffusion, size = dict(config.get("diffusion", {})), dict(stems=len(stems["names"]))
        # The mix is a track and a category of its own.
        mix = bool(diffusion.get("beside_mix"))
        size["stems"] += mix
        if kind == "dit":
            size["categories"] = size["stems"]
            diffusion["latent_hop"] = config["latents"]["hop"]
        else:
            size["channels"] = stems["channels"]
        if kind == "bands":
            size["mix"] = mix
        return cls(
            names=tuple(stems["names"]),
            sample_rate=stems["sample_rate"],
            channels=stems["channels"],
            samples=num_samples(config["data"]["seconds"], stems["sample_rate"]),
            network=NETWORKS[kind][0].from_config(fields, **size),
            **diffusion,
        )

    @property
    def stems(self) -> int:
        """S."""
        return len(self.names)

    @property
    def tracks(self) -> int:
        """S, and one more where the mix is a track."""
        return self.stems + bool(self.beside_mix)

    @property
    def hop(self) -> int:
        """Samples that a length is a multiple of."""
        return self.network.hop * max(1, self.latent_hop)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an example as it is noised: S, T, C, or of latents S, F, D."""
        if isinstance(self.network, DiTConfig):
            return self.stems, self.samples // self.latent_hop, self.network.latent_dim
        return self.stems, self.samples, self.channels

    @property
    def diffusion(self) -> Objective:
        """What the network learns, and how it is read."""
        names = ("sigma_data", "clip", "noise_mean", "noise_std")
        return Objective(name=self.objective, **{name: getattr(self, name) for name in names})

    @property
    def separates(self) -> bool:
        """Whether the network maps a mix to its stems and is no denoiser."""
        return isinstance(self.network, SeparatorConfig)

    @property
    def per_track(self) -> bool:
        """Whether each stem has a noise level of its own."""
        return not isinstance(self.network, SeparatorConfig) and self.network.per_track


def make_network(config: StemsConfig) -> nn.Module:
    """The network, of the kind of its config."""
    modules = dict(NETWORKS.values())
    return modules[type(config.network)](config.network)


def init_params(config: StemsConfig, key: Key) -> Params:
    """Fresh parameters of the network; for use under `jax.jit` or `jax.eval_shape`.

    Draws from XLA's own generator: hundreds of small threefry draws would compile for minutes.
    """
    key = jax.random.wrap_key_data(jax.random.bits(key, (4,)), impl="unsafe_rbg")
    stems = jnp.zeros((1, config.tracks, *config.shape[1:]))
    levels = jnp.zeros((1, config.tracks) if config.per_track else (1,))
    inputs = (stems[:, 0],) if config.separates else (stems, levels)
    return make_network(config).init(key, *inputs)["params"]


def denoiser(
    config: StemsConfig,
    params: Params,
    condition: StemCondition | None = None,
    mix: Float[Array, "B 1 F D"] | None = None,
) -> Denoiser:
    """The estimate D(x, t) of clean stems from x [B, S, T, C], or of clean latents, of noise level
    t, see `Objective.denoiser`.

    t has the rank of x: [B, 1, 1, 1] or [1, 1, 1, 1], with `per_track` also [B, S, 1, 1] or
    [1, S, 1, 1]. Stems of level 0 come back as they are.

    Args:
      condition: of a Transformer; with `beside_mix` its tracks are the mix and the stems.
      mix: [B, 1, T, C], or its latents; with `beside_mix`, None is a mix that is not known.
    """
    network: Any = make_network(config)

    def known(x: Array) -> StemCondition:
        told = condition or StemCondition()
        if not config.beside_mix or mix is not None:
            return told
        present = jnp.ones(x.shape[:2], bool) if told.present is None else told.present
        return dataclasses.replace(told, present=present.at[:, 0].set(False))

    def predict(x: Float[Array, "B S T C"], noise: Float[Array, "#B #S 1 1"]) -> Array:
        levels = x.shape[:2] if config.per_track else (x.shape[0], 1)
        if noise.shape[1] > levels[1]:
            raise UserError(
                f"{noise.shape[1]} noise levels an example, but this model has one for all stems; "
                "train it with model.per_track"
            )
        noise = jnp.broadcast_to(noise[..., 0, 0], levels)
        inputs = x, noise if config.per_track else noise[:, 0]
        if not isinstance(config.network, DiTConfig):
            return network.apply({"params": params}, *inputs)
        return network.apply({"params": params}, *inputs, known(x))

    estimate = config.diffusion.denoiser(predict)
    if not config.beside_mix:
        return estimate
    unknown = jnp.zeros((1, 1, 1, 1))
    return beside_mix(estimate, unknown if mix is None else mix)
