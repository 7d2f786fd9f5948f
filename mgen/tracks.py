"""Songs on disk and models over stems: a mix taken apart, tracks added, piece by piece.

Stems are written as 32-bit floats, at the level that they have in the mix, also beyond full scale.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from absl import flags

from mgen import clips, files, plot
from mgen.audio import io
from mgen.audio.resample import (
    fit_length,
    mix_channels,
    num_samples,
    resample_blocks,
    resampled_length,
)
from mgen.errors import UserError
from mgen.inputs.controls import parse_chords
from mgen.progress import Progress
from mgen.stems.condition import StemCondition
from mgen.stems.latent_sample import SAMPLING, THROUGH, LatentStems
from mgen.stems.sample import CONTEXT, FrozenSeparator, FrozenStems
from mgen.stems.separating import FADE, OnStep
from mgen.stems.settings import (
    GENERATION,
    IMPUTATION,
    Dirac,
    Gaussian,
    Likelihood,
    SamplingConfig,
    Track,
)
from mgen.stems.windows import Source, Windows
from mgen.train.checkpoint import Trained, load_trained, make_task
from mgen.typing import Float, ndarray

LIKELIHOODS = ("dirac", "gaussian", "track")  # of the sum of waveforms
AVERAGE = "average"  # in place of the name of a derived stem
PICTURE = 300.0  # s that are drawn of longer songs


Model: TypeAlias = FrozenStems | FrozenSeparator | LatentStems


def load(workdirs: Sequence[str | Path]) -> tuple[Model, dict[str, str]]:
    """The model over stems trained in a workdir, or those of one stem each in several, and their
    fingerprints; `UserError` where there is none."""
    loaded = [load_trained(workdir, "stems") for workdir in workdirs]
    models = [frozen(own) for own in loaded]
    about = {f"stems_{i}": own.fingerprint for i, own in enumerate(loaded)}
    if len(models) == 1:
        return models[0], about
    waveforms = []
    for workdir, model in zip(workdirs, models):
        if not isinstance(model, FrozenStems):
            raise UserError(f"{workdir}: expected a diffusion model of one stem's waveform")
        waveforms.append(model)
    return FrozenStems.independent(waveforms), about


def frozen(trained: Trained) -> Model:
    """The model of a workdir, of the kind of its config."""
    config, weights = trained.config, (trained.params, trained.variables)
    if config.model.kind == "dit":
        codec: Any = make_task(config.codec)
        return LatentStems.from_trained(config, *weights, codec.autoencoder())
    kind: Any = FrozenSeparator if config.model.kind == "separator" else FrozenStems
    return kind.from_trained(config, *weights)


def drawing(model: Model) -> FrozenStems | LatentStems:
    """`model`; `UserError` for one that draws nothing."""
    if isinstance(model, FrozenSeparator):
        raise UserError("a separator (model.kind) draws no stems, expected a diffusion model")
    return model


def define_sampling_flags() -> Callable[[], dict[str, Any]]:
    """Flags in place of MSDM's settings; returns what reads those that were given. A script makes
    them its own by `flags.adopt_module_key_flags(tracks)`."""
    defined: tuple[flags.FlagHolder[Any], ...] = (
        flags.DEFINE_string("sampler", None, "Such as heun or dpmpp_2m; MSDM has euler."),
        flags.DEFINE_integer("steps", None, "Steps from noise to stems.", 1),
        flags.DEFINE_float("churn", None, "Fresh noise on the way.", 0.0),
        flags.DEFINE_integer("repeats", None, "How often each step is made.", 1),
    )
    return lambda: {flag.name: flag.value for flag in defined if flag.value is not None}


def define_likelihood_flag() -> flags.FlagHolder[str | None]:
    """`kind` of `separation`."""
    text = "How a mix binds its stems: of waveforms {}, of latents {}; by default the first."
    pairs = (" or ".join(kinds) for kinds in (LIKELIHOODS, THROUGH))
    kinds = list(dict.fromkeys((*LIKELIHOODS, *THROUGH)))
    return flags.DEFINE_enum("likelihood", None, kinds, text.format(*pairs))


def changed(sampling: SamplingConfig, changes: Mapping[str, Any] | None) -> SamplingConfig:
    """Sampling with `changes`. Churn is of all steps: it is scaled with their number, so that each
    adds as much noise as before, or few steps would leave the range where they are stable."""
    own = dict(changes or {})
    if "steps" in own and sampling.churn:
        own.setdefault("churn", sampling.churn * own["steps"] / sampling.steps)
    return dataclasses.replace(sampling, **own)


def drawing_sampling(
    model: FrozenStems | LatentStems,
    waveforms: SamplingConfig,
    changes: Mapping[str, Any] | None = None,
) -> SamplingConfig:
    """How stems are drawn: of waveforms as told, of latents their own way, with `changes`."""
    own = SAMPLING if isinstance(model, LatentStems) else waveforms
    return changed(own, changes)


def separation(
    model: Model, kind: str | None = "", derived: str = "", changes: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], int]:
    """What `separate_windows` of a model is told, and the steps that it takes.

    Args:
      kind: of waveforms see `likelihood`, by default "track" of a model that reads the mix and
        "dirac" of others; of latents one of `mgen.stems.latent_sample.THROUGH`, by default the
        first.
      derived: see `likelihood`.
      changes: of the model's sampling.

    Raises:
      UserError: what this model does not know.
    """
    changes = changes or {}
    if isinstance(model, FrozenSeparator):
        if unknown := [name for name in (kind, derived, *changes) if name]:
            raise UserError(f"a separator draws nothing, expected no {', '.join(unknown)}")
        return {}, 1
    if isinstance(model, LatentStems):
        sampling = drawing_sampling(model, SAMPLING, changes)
        return dict(through=kind or THROUGH[0], sampling=sampling), sampling.steps
    known = likelihoods(model)
    if kind and kind not in known:
        raise UserError(f"--likelihood={kind}: expected {' or '.join(known)}")
    own = likelihood(kind or known[0], derived, model.names)
    sampling = changed(model.separation_sampling(own), changes)
    return dict(likelihood=own, sampling=sampling), sampling.steps


def likelihoods(model: FrozenStems) -> tuple[str, ...]:
    """Those of `LIKELIHOODS` that a model of waveforms knows, the best one first."""
    *others, track = LIKELIHOODS
    return (track, *others) if model.beside_mix else tuple(others)


def likelihood(kind: str, derived: str, names: Sequence[str]) -> Likelihood:
    """Of a mix: "track", "gaussian", or "dirac" with the name of the derived stem (by default the
    first one), or `AVERAGE`.

    Raises:
      UserError: a name that there is not.
    """
    if kind == "track":
        return Track()
    if kind == "gaussian":
        return Gaussian()
    if derived == AVERAGE:
        return Dirac(None)
    if derived and derived not in names:
        raise UserError(f"--derived={derived}: expected {AVERAGE}, {', '.join(names)}")
    return Dirac(names.index(derived) if derived else 0)


def separate(
    model: Model,
    mix: str | Path,
    out: str | Path,
    *,
    seed: int,
    kind: str = "",
    derived: str = "",
    changes: dict[str, Any] | None = None,
    exact_sum: bool = False,
) -> list[Path]:
    """Writes the stems of a mix, at its rate and with its channels: <name>.wav each, and stems.png.

    Args:
      mix: audio file of any rate, length and number of channels.
      seed: of the noise.
      kind, derived, changes: see `separation`.
      exact_sum: what the stems lack of the mix (what lies above the rate of the model, sides that a
        mono model does not hear) is shared out evenly, so that they sum to it.

    Returns the paths of the stems.
    """
    about, source = io.info(mix), song(mix, model)
    settings, steps = separation(model, kind, derived, changes)
    windows = Windows.overlapping(model.samples, model.hop, FADE).count(source.samples)
    with progress("separating", -(-windows // model.windows_at_once), steps) as on_step:
        pieces = model.separate_pieces(source, seeds=[seed], on_step=on_step, **settings)
        blocks = fitted(converted(pieces, model, about), about.samples)
        if exact_sum:
            blocks = summing(blocks, mix, about)
        paths = write(out, model.names, blocks, about.sample_rate, about.channels)
    draw(Path(out) / "stems.png", paths)
    return paths


def arrange(
    model: FrozenStems | LatentStems,
    given: Sequence[str | Path],
    targets: Sequence[str],
    out: str | Path,
    *,
    seed: int,
    duration: float | None = None,
    chords: str = "",
    changes: dict[str, Any] | None = None,
) -> list[Path]:
    """Writes stems that go with others, at the model's rate: <name>.wav each, mix.wav of all of
    them, and stems.png.

    Args:
      given: audio files, each with the name of its stem (bass.wav); after its end one is silent.
      targets: names of the stems to make.
      duration: s; by default that of the longest one given.
      chords: what to play, see `mgen.inputs.controls.parse_chords`; of a model over latents.
      seed, changes: see `separate`.

    Returns the paths of the stems and of the mix.
    """
    paths = {Path(path).stem: path for path in given}
    model.indices(paths)
    sources = {name: song(path, model) for name, path in paths.items()}
    samples = max((source.samples for source in sources.values()), default=0)
    if duration is not None:
        samples = num_samples(duration, model.sample_rate)
    if samples < 1:
        raise UserError("--duration: expected seconds where no stem is given")
    if chords and not isinstance(model, LatentStems):
        raise UserError("--chords: this model is told none, expected one over latents")
    sampling = drawing_sampling(model, IMPUTATION if given else GENERATION, changes)
    windows = Windows.overlapping(model.samples, model.hop, CONTEXT).count(samples)
    with progress("arranging", windows, sampling.steps) as on_step:
        told: dict[str, Any] = dict(seeds=[seed], sampling=sampling, on_step=on_step)
        if isinstance(model, LatentStems):
            pieces = latent_pieces(model, sources, targets, samples, chords, **told)
        else:
            pieces = model.arrange_pieces(sources, targets, samples, **told)
        blocks = with_mix(pieces, sources.values())
        made = write(out, [*targets, "mix"], blocks, model.sample_rate, model.channels)
    draw(Path(out) / "stems.png", [*paths.values(), *made[:-1]])
    return made


def latent_pieces(
    model: LatentStems,
    sources: Mapping[str, Source],
    targets: Sequence[str],
    samples: int,
    chords: str,
    **told: Any,
) -> Iterator[Float[ndarray, "1 targets T C"]]:
    """The stems `targets` as one piece: latents of a song are small."""
    if chords:
        frames = -(-samples // model.config.latent_hop)
        rate = model.sample_rate / model.config.latent_hop
        told["condition"] = StemCondition(chords=parse_chords(chords, frames, rate)[None])
    if not sources:
        wanted = model.indices(targets)
        yield model.generate(seconds=samples / model.sample_rate, **told)[:, wanted]
        return
    given = {
        name: fit_length(source.read(0, min(samples, source.samples))[0], samples)[None]
        for name, source in sources.items()
    }
    yield model.arrange(given, targets, **told)


def song(path: str | Path, model: Model) -> Source:
    """A file [1, T, C] at the rate and with the channels of a model; `UserError` where it cannot be
    read."""
    about, rate = io.info(path), model.sample_rate
    samples = resampled_length(about.samples, about.sample_rate, rate)
    if not samples:  # a single sample, at a lower rate
        return Source.of(np.zeros((1, 1, model.channels), np.float32))

    def read(begin: int, end: int) -> ndarray:
        start, duration = begin / rate, (end - begin) / rate
        fit: dict[str, int] = dict(sample_rate=rate, channels=model.channels)
        return io.read(path, start=start, duration=duration, **fit)[None]

    return Source(samples, read)


def converted(
    pieces: Iterable[Float[ndarray, "1 S t C"]],
    model: Model,
    to: io.AudioInfo,
) -> Iterator[Float[ndarray, "S t C"]]:
    """Stems of a model, at the rate and with the channels of a file."""
    stems, channels = len(model.names), model.channels
    interleaved = (piece[0].swapaxes(0, 1).reshape(-1, stems * channels) for piece in pieces)
    for block in resample_blocks(interleaved, model.sample_rate, to.sample_rate):
        parts = block.reshape(-1, stems, channels).swapaxes(0, 1)
        yield np.stack([mix_channels(part, to.channels) for part in parts])


def fitted(
    blocks: Iterable[Float[ndarray, "S t C"]], samples: int
) -> Iterator[Float[ndarray, "S t C"]]:
    """Cut, or continued with zeros, to a number of samples: a rate and back may end off by some."""
    for block in blocks:
        yield block[:, :samples]
        samples = max(0, samples - block.shape[1])
    if samples:
        yield np.zeros_like(block, shape=(block.shape[0], samples, block.shape[2]))


def summing(
    blocks: Iterable[Float[ndarray, "S t C"]], mix: str | Path, about: io.AudioInfo
) -> Iterator[Float[ndarray, "S t C"]]:
    """With what they lack of the mix shared out evenly (Wisdom et al. 2019)."""
    done, rate = 0, about.sample_rate
    for block in blocks:
        if length := block.shape[1]:
            whole = io.read(mix, start=done / rate, duration=length / rate)
            yield block + (whole - block.sum(axis=0)) / len(block)
        done += length


def with_mix(
    pieces: Iterable[Float[ndarray, "1 S t C"]], others: Iterable[Source]
) -> Iterator[Float[ndarray, "S_plus_1 t C"]]:
    """Stems, and behind them their sum with others."""
    done, others = 0, list(others)
    for piece in pieces:
        total, end = piece[0].sum(axis=0), done + piece.shape[2]
        for other in others:
            if done < (last := min(end, other.samples)):
                total += fit_length(other.read(done, last)[0], len(total))
        yield np.concatenate([piece[0], total[None]])
        done = end


def write(
    out: str | Path,
    names: Sequence[str],
    blocks: Iterable[Float[ndarray, "S t C"]],
    sample_rate: int,
    channels: int,
) -> list[Path]:
    """Writes <name>.wav of all names, or, where an error comes between, none."""
    folder = clips.make_folder(out)
    paths = [folder / f"{name}.wav" for name in names]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(io.writer(p, sample_rate, channels)) for p in paths]
        for block in blocks:
            for write_block, stem in zip(writers, block, strict=True):
                write_block(stem)
    return paths


def draw(path: Path, stems: Sequence[str | Path]) -> None:
    """Draws a page of files, of long ones the beginning."""
    rate = io.info(stems[-1]).sample_rate
    seconds = min(PICTURE, max(io.info(stem).duration for stem in stems))
    audio = [io.read(stem, duration=seconds, sample_rate=rate) for stem in stems]
    plot.stems_page(path, audio, [Path(stem).stem for stem in stems], rate)


def write_about(out: str | Path, about: dict[str, Any]) -> None:
    """Writes stems.json: what makes the stems again."""
    files.write_json(Path(out) / "stems.json", about)


@contextlib.contextmanager
def progress(description: str, runs: int, steps: int) -> Iterator[OnStep]:
    """A bar over the steps of all runs; gives what they tell of each."""
    with Progress(description, runs * steps, "steps") as bar:
        finished = 0

        def on_step(done: Any) -> None:
            nonlocal finished
            bar.update(max(0, finished + int(done) - bar.done))
            if int(done) == steps:
                finished += steps

        yield on_step
        jax.effects_barrier()  # steps that are yet to be told
