"""Inference with models over stems: what is not known of them is drawn given what is.

One function, `fill_in`, does it for a window; the tasks differ in what is known:

    generate  nothing           inpaint  all but some stems over some time    separate  the sum
    arrange   some stems        extend   the beginning

Example:
    model = FrozenStems.from_trained(config, params, variables)
    stems = model.generate(seconds=30.0, seeds=[0, 1])                    # [B, S, T, C]
    piano = model.arrange({"bass": bass, "drums": drums}, ["piano"], seeds=[0])
    stems = model.separate(mix, seeds=[0])                                # of mix [B, T, C]
    for piece in model.separate_pieces(source, seeds=[0]): ...            # bounded memory
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.audio.resample import num_samples
from mgen.diffusion.posterior import inpainting
from mgen.diffusion.process import Denoiser
from mgen.diffusion.samplers import sample
from mgen.diffusion.trajectory import Constraint
from mgen.errors import UserError
from mgen.stems.model import StemsConfig, denoiser, make_network
from mgen.stems.separating import (
    STATIC,
    OnStep,
    Seeds,
    Separating,
    finite,
    joined,
    keys_of,
    layout,
)
from mgen.stems.settings import (
    DIRAC,
    GENERATION,
    IMPUTATION,
    SEPARATION_INDEPENDENT,
    Likelihood,
    SamplingConfig,
    Track,
)
from mgen.stems.windows import Source, Windows, continued, positional_noise
from mgen.typing import Array, Bool, Float, Int, Key, Params, ndarray

# Share of a window that it has in common with the one before it.
CONTEXT = 0.5
# Number of the draw that sampling starts from; no step has it.
START = np.iinfo(np.uint32).max


@dataclasses.dataclass(frozen=True)
class Span:
    """Seconds `start` to `end` of the stems of these names, or of all."""

    start: float
    end: float
    stems: Sequence[str] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenStems(Separating):
    """A trained diffusion model over stems.

    Attributes:
      per_track: whether stems may differ in their noise level, so that a given one has none.
      beside_mix: whether the mix can be a track.
      estimate: parameters and, with `beside_mix`, a mix -> denoiser of stems [B, S, T, C], T a
        multiple of `hop`, at noise levels [B or 1, S or 1, 1, 1].
    """

    per_track: bool = dataclasses.field(metadata=STATIC)
    beside_mix: bool = dataclasses.field(default=False, metadata=STATIC)
    estimate: Callable[..., Denoiser] = dataclasses.field(metadata=STATIC)
    params: Params

    @classmethod
    def from_trained(cls, config: Any, params: Params, variables: Params) -> "FrozenStems":
        """From an experiment's config and the state of its training.

        Raises:
          UserError: the config is a separator's.
        """
        del variables  # there are none
        own = StemsConfig.from_experiment(config)
        if own.separates:
            raise UserError("model.kind is 'separator', expected a denoiser of stems")
        if own.latent_hop:
            raise UserError("model.kind is 'dit', expected a denoiser of waveforms")
        estimate = functools.partial(denoiser, own)
        return cls(
            **layout(own),
            per_track=own.per_track,
            beside_mix=bool(own.beside_mix),
            estimate=estimate,
            params=params,
        )

    @classmethod
    def independent(cls, models: "Sequence[FrozenStems]") -> "FrozenStems":
        """Models of one stem each, beside each other (MSDM's ISDM).

        Raises:
          UserError: models that differ in more than their stem.
        """
        first, fields = models[0], ("sample_rate", "channels", "samples", "hop")
        for model in models:
            for field in fields:
                found, expected = getattr(model, field), getattr(first, field)
                if found != expected:
                    raise UserError(f"model of {model.names}: {field} {found}, not {expected}")
            if len(model.names) != 1:
                raise UserError(f"model of {model.names}: expected one stem")
        return cls(
            names=tuple(model.names[0] for model in models),
            **{field: getattr(first, field) for field in fields},
            per_track=True,
            estimate=_side_by_side,
            params=tuple(models),
        )

    def denoise(self, x: Array, t: Array, mix: Array | None = None) -> Array:
        """Estimate of the stems from noisy ones and, of a model `beside_mix`, from their mix."""
        given = {} if mix is None else {"mix": mix}
        return self.estimate(self.params, **given)(x, t)

    def at(self, begin: int) -> "FrozenStems":
        """The model of a window that begins at this sample of its song: itself, unless what it is
        told depends on the place."""
        del begin
        return self

    def generate(
        self,
        *,
        seconds: float,
        seeds: Seeds,
        sampling: SamplingConfig = GENERATION,
        **settings: Any,
    ) -> Float[ndarray, "B S T C"]:
        """All stems, from nothing."""
        nothing = self._partly({}, num_samples(seconds, self.sample_rate), len(seeds))
        return joined(self.pieces(nothing, seeds=seeds, sampling=sampling, **settings))

    def arrange(
        self,
        given: Mapping[str, Float[ndarray, "B T C"]],
        targets: Sequence[str],
        *,
        seeds: Seeds,
        **settings: Any,
    ) -> Float[ndarray, "B targets T C"]:
        """The stems `targets` that go with the given ones; see `arrange_pieces`."""
        sources: dict[str, Source] = {}
        length = None
        for name, audio in given.items():
            audio = np.asarray(audio, np.float32)
            self.check(f"stem {name}", audio, (len(seeds), length, self.channels))
            sources[name], length = Source.of(audio), audio.shape[1]
        if length is None:
            raise UserError("no stem is given, expected one or more")
        return joined(self.arrange_pieces(sources, targets, length, seeds=seeds, **settings))

    def arrange_pieces(
        self,
        given: Mapping[str, Source],
        targets: Sequence[str],
        samples: int,
        *,
        seeds: Seeds,
        **settings: Any,
    ) -> Iterator[Float[ndarray, "B targets t C"]]:
        """Consecutive pieces of the stems `targets`, given some others.

        Stems that are neither given nor wanted are drawn with the targets and left out: a stem that
        is to be silent is given as silence.

        Args:
          given: stems [B, T, C] by name; after its end a stem is silent.
          samples: length of the result.
          settings: of `pieces`.

        Raises:
          UserError: names that there are not, or that are given and wanted.
        """
        self.indices(given)
        own = self.indices(targets)
        if not own or set(given) & set(targets):
            raise UserError(f"targets {list(targets)}, expected some that are not given")
        pieces = self.pieces(self._partly(given, samples, len(seeds)), seeds=seeds, **settings)
        return (piece[:, own] for piece in pieces)

    def inpaint(
        self,
        stems: Float[ndarray, "B S T C"],
        spans: Sequence[Span],
        *,
        seeds: Seeds,
        **settings: Any,
    ) -> Float[ndarray, "B S T C"]:
        """Stems with what lies in the spans made anew; see `pieces`."""
        stems = np.asarray(stems, np.float32)
        self.check("stems", stems, (len(seeds), len(self.names), None, self.channels))
        mask = np.ones(stems.shape[:3], bool)
        for span in spans:
            begin, end = (num_samples(s, self.sample_rate) for s in (span.start, span.end))
            if not 0 <= begin < end <= stems.shape[2]:
                raise UserError(
                    f"span from {span.start:g} to {span.end:g} s, expected one within"
                    f" {stems.shape[2] / self.sample_rate:g} s"
                )
            mask[:, self.indices(span.stems or self.names), begin:end] = False
        return joined(self.pieces(_masked(stems, mask), seeds=seeds, **settings))

    def extend(
        self, stems: Float[ndarray, "B S T C"], seconds: float, *, seeds: Seeds, **settings: Any
    ) -> Float[ndarray, "B S T C"]:
        """Stems that go on for so many seconds more; see `pieces`."""
        stems = np.asarray(stems, np.float32)
        self.check("stems", stems, (len(seeds), len(self.names), None, self.channels))
        if (more := num_samples(seconds, self.sample_rate)) < 1:
            raise UserError(f"{seconds:g} s more, expected at least one sample")
        longer = np.pad(stems, ((0, 0), (0, 0), (0, more), (0, 0)))
        mask = np.broadcast_to(np.arange(longer.shape[2]) < stems.shape[2], longer.shape[:3])
        return joined(self.pieces(_masked(longer, mask), seeds=seeds, **settings))

    def pieces(
        self,
        known: Source,
        *,
        seeds: Seeds,
        sampling: SamplingConfig = IMPUTATION,
        overlap: float = CONTEXT,
        on_step: OnStep | None = None,
    ) -> Iterator[Float[ndarray, "B S t C"]]:
        """Consecutive pieces of stems, drawn where they are not known; see `windows.continued`.

        Args:
          known: reads stems [B, S, n, C] and True [B, S, n] where they are known.
          seeds: one an example: what is made of it does not depend on the others.
          overlap: share of a window that it has in common with the one before it.
          on_step: told of each step.
        """
        if known.samples < 1:
            raise UserError(f"stems of {known.samples} samples, expected at least one")
        keys = keys_of(seeds)

        def run(stems: ndarray, mask: ndarray, begin: int) -> ndarray:
            first = np.full(len(keys), begin // self.hop)
            return finite(
                fill_in(
                    self.at(begin), stems, mask, keys, first, sampling=sampling, on_step=on_step
                )
            )

        return continued(run, known, Windows.overlapping(self.samples, self.hop, overlap))

    def separate_windows(
        self,
        mix: Float[ndarray, "N 1 T C"],
        keys: Key,
        first: Int[ndarray, " N"],
        *,
        on_step: OnStep | None = None,
        likelihood: Likelihood = DIRAC,
        sampling: SamplingConfig | None = None,
    ) -> Float[Array, "N S T C"]:
        """As `Separating.separate_windows`.

        Args:
          likelihood: how well the sum of the stems is known.
          sampling: by default `separation_sampling`.

        Raises:
          UserError: the mix is to be a track of a model that has none.
        """
        if isinstance(likelihood, Track) and not self.beside_mix:
            raise UserError("the mix is no track of this model, expected one with beside_mix")
        nothing = jnp.zeros((mix.shape[0], len(self.names), *mix.shape[2:]))
        return fill_in(
            self,
            nothing,
            None,
            keys,
            first,
            sampling=sampling or self.separation_sampling(likelihood),
            mix=mix,
            likelihood=likelihood,
            on_step=on_step,
        )

    def generate_windows(
        self, keys: Key, first: Int[Array, " N"], *, sampling: SamplingConfig = GENERATION
    ) -> Float[Array, "N S T C"]:
        """All stems of windows of `samples`, from nothing; arguments as of `separate_windows`."""
        shape = (keys.shape[0], len(self.names), self.samples, self.channels)
        return fill_in(self, jnp.zeros(shape), None, keys, first, sampling=sampling)

    def separation_sampling(self, likelihood: Likelihood) -> SamplingConfig:
        """MSDM's settings for a likelihood, or for independent models."""
        alone = self.estimate is _side_by_side
        return SEPARATION_INDEPENDENT if alone else likelihood.sampling

    def _partly(self, given: Mapping[str, Source], samples: int, batch: int) -> Source:
        """Whole stems [B, T, C] that are given, and others that are missing."""
        own = self.indices(given)

        def read(begin: int, end: int) -> tuple[ndarray, ndarray]:
            stems = np.zeros((batch, len(self.names), end - begin, self.channels), np.float32)
            mask = np.zeros(stems.shape[:3], bool)
            mask[:, own] = True
            for index, source in zip(own, given.values()):
                last = min(end, source.samples)
                if begin < last:
                    stems[:, index, : last - begin] = source.read(begin, last)
            return stems, mask

        return Source(samples, read)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenSeparator(Separating):
    """A network trained to take mixes apart directly: what diffusion is compared with.

    Attributes:
      apply: parameters -> function of mixes [B, T, C] to stems [B, S, T, C], T a multiple of `hop`.
    """

    apply: Callable[[Any], Callable[[Array], Array]] = dataclasses.field(metadata=STATIC)
    params: Params

    @classmethod
    def from_trained(cls, config: Any, params: Params, variables: Params) -> "FrozenSeparator":
        """From an experiment's config and the state of its training.

        Raises:
          UserError: the config is not a separator's.
        """
        del variables  # there are none
        own = StemsConfig.from_experiment(config)
        if not own.separates:
            raise UserError(f"model.kind is {config['model']['kind']!r}, expected 'separator'")
        network: Any = make_network(own)
        return cls(
            **layout(own),
            apply=lambda params: lambda mix: network.apply({"params": params}, mix),
            params=params,
        )

    def separate_windows(
        self,
        mix: Float[ndarray, "N 1 T C"],
        keys: Key,
        first: Int[ndarray, " N"],
        *,
        on_step: OnStep | None = None,
    ) -> Float[Array, "N S T C"]:
        """As `Separating.separate_windows`, in one step; nothing is drawn."""
        del keys, first
        made = _applied(self, mix[:, 0])
        if on_step is not None:
            jax.block_until_ready(made)
            on_step(1)
        return made


@functools.partial(jax.jit, static_argnames=("sampling", "likelihood", "on_step"))
def fill_in(
    model: FrozenStems,
    known: Float[Array, "B S T C"],
    mask: Bool[Array, "B S T"] | None,
    keys: Key,
    first: Int[Array, " B"],
    *,
    sampling: SamplingConfig,
    mix: Float[Array, "B 1 T C"] | None = None,
    likelihood: Likelihood | None = None,
    on_step: OnStep | None = None,
) -> Float[Array, "B S T C"]:
    """Stems of a window, drawn where they are not known.

    Whole stems that are known have no noise at any time where the model is `per_track`. Others, and
    spans of time, are put in their place before each evaluation, noised to its time, and clean at
    the end (MSDM's imputation).

    Args:
      known: what it holds elsewhere does not matter.
      mask: True where stems are known; None: nowhere.
      keys: [B], one a song.
      first: number of the block of `hop` samples in its song that each window begins with.
      mix: the sum of the stems, with its `likelihood`.
      on_step: called on the host with the number of steps before each evaluation, and with all of
        them at the end.
    """
    drawn, pasted = (
        positional_noise(own, first, known.shape, model.hop)
        for own in jax.vmap(jax.random.split)(keys).T
    )
    times = jnp.asarray(sampling.times(), known.dtype).reshape(-1, 1, 1, 1, 1)
    denoise: Callable[..., Array] = model.denoise
    constraints: list[Constraint] = []
    if mask is not None:
        if model.per_track:
            times = times * ~mask.all(axis=2)[None, :, :, None, None]
        constraints.append(inpainting(known, mask[..., None], pasted, sampling.steps))
    if mix is not None and likelihood is not None:
        denoise, summing = likelihood.apply(denoise, mix, known.shape[1])
        constraints.append(summing)

    def constrain(x: Array, t: Array, i: Array) -> Array:
        for constraint in constraints:
            x = constraint(x, t, i)
        if on_step is not None:
            jax.debug.callback(on_step, i, ordered=True)
        return x

    x = jnp.where(times[0] > 0, times[0] * drawn(jnp.uint32(START), 0), known)
    solver = sampling.solver()
    return sample(denoise, x, times, sampler=solver, noise=drawn, constrain=constrain)


@jax.jit
def _applied(model: FrozenSeparator, mixes: Float[Array, "B T C"]) -> Float[Array, "B S T C"]:
    return model.apply(model.params)(mixes)


def _side_by_side(models: Sequence[FrozenStems]) -> Denoiser:
    """The denoiser of models of one stem each."""

    def denoise(x: Array, t: Array) -> Array:
        parts = jnp.split(x, len(models), axis=1)
        levels = jnp.split(
            jnp.broadcast_to(t, (t.shape[0], len(models), 1, 1)), len(models), axis=1
        )
        estimates = [m.denoise(part, level) for m, part, level in zip(models, parts, levels)]
        return jnp.concatenate(estimates, axis=1)

    return denoise


def _masked(stems: Float[ndarray, "B S T C"], mask: Bool[ndarray, "B S T"]) -> Source:
    """Stems that are known where `mask` is True."""
    return Source(stems.shape[2], lambda b, e: (stems[:, :, b:e], mask[:, :, b:e]))
