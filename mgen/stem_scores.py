"""How models over stems do on held-out pieces: mixes taken apart, a missing stem filled in, all
stems made from nothing."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mgen import plot, report, tracks
from mgen.audio import io
from mgen.errors import UserError
from mgen.inputs import pipeline
from mgen.metrics import bootstrap, frechet
from mgen.metrics.audio import si_sdr
from mgen.metrics.separation import windowed_si_sdri
from mgen.progress import track
from mgen.stems.latent_sample import THROUGH, LatentStems
from mgen.stems.sample import FrozenSeparator, FrozenStems
from mgen.stems.settings import GENERATION, IMPUTATION
from mgen.train.checkpoint import Trained, load_trained
from mgen.typing import Bool, Float, ndarray

WRITTEN = 2  # clips that can be listened to

# mix [B, T, C], seeds [B] -> stems [B, S, T, C].
Separator = Callable[..., Float[ndarray, "B S T C"]]


@dataclasses.dataclass(frozen=True)
class Options:
    """`clips` of `seconds`, each from another piece as far as there are, `batch` at once; the first
    clip's seed."""

    clips: int = 24
    seconds: float = 5.12
    batch: int = 8
    seed: int = 0


class Models(NamedTuple):
    """What is compared; None where there is none. `trained` is the joint model's."""

    joint: FrozenStems | LatentStems
    trained: Trained
    independent: FrozenStems | LatentStems | None = None
    separator: FrozenSeparator | None = None


def load(joint: str, independent: Sequence[str] = (), separator: str = "") -> Models:
    """From workdirs; `UserError` where one holds something else, or other stems."""
    trained = load_trained(joint, "stems")
    model = tracks.drawing(tracks.frozen(trained))
    alone = tracks.drawing(tracks.load(independent)[0]) if independent else None
    baseline = tracks.load([separator])[0] if separator else None
    if baseline is not None and not isinstance(baseline, FrozenSeparator):
        raise UserError(f"{separator}: draws stems, expected a separator (model.kind)")
    for name, other in (("independent", alone), ("separator", baseline)):
        if other is not None and other.names != model.names:
            raise UserError(f"--{name}: stems {other.names}, expected {model.names}")
    return Models(model, trained, alone, baseline)


def measure(
    models: Models,
    dataset: str,
    split: str,
    out: Path,
    options: Options,
    changes: dict[str, Any],
) -> dict[str, float]:
    """The table on the screen and in out/report.json; of the first clips WAVs and pictures."""
    joint, rate = models.joint, models.joint.sample_rate
    stems = held_out(models.trained, dataset, split, options)
    rows: dict[str, tuple[float, str, str]] = {}
    for name, found in intervals(mix_levels(stems), joint.names, options.seed).items():
        rows[f"mix/{name}"] = (found.mean, "dB", "SI-SDR of the mix itself, to which SI-SDRi adds")
    write(out / "held_out", stems[:WRITTEN], joint.names, rate)
    for name, separator in methods(models, changes).items():
        estimates = separated(separator, stems, options, name)
        write(out / name, estimates[:WRITTEN], joint.names, rate)
        gains = improvements(stems, estimates, joint.names, rate)
        for stem, found in intervals(gains, joint.names, options.seed).items():
            remark = f"SI-SDRi; 95% from {found.low:.2f} to {found.high:.2f}"
            rows[f"{name}/{stem}"] = (found.mean, "dB", remark)
    fillings = {name: imputed(joint, stems, name, changes, options) for name in joint.names}
    for name, filling in fillings.items():
        whole = np.where(one_of(joint.names, name), filling[:, None], stems)
        write(out / f"imputed_{name}", whole[:WRITTEN], joint.names, rate)
    made = generated(joint, changes, options)
    write(out / "generated", made[:WRITTEN], joint.names, rate)
    for name, value in distances(stems, fillings, made, joint.names, rate).items():
        rows[name] = (value, "", "Fréchet distance to the held-out mixes; lower is better")
    report.write(out, f"clips: {out}/*/*.wav", rows)
    return {name: value for name, (value, _, _) in rows.items()}


def one_of(names: Sequence[str], name: str) -> Bool[ndarray, "S 1 1"]:
    """True at a stem."""
    return np.asarray([own == name for own in names])[:, None, None]


def write(
    folder: Path, clips: Float[ndarray, "N S T C"], names: Sequence[str], sample_rate: int
) -> None:
    """<number>_<stem>.wav, <number>_mix.wav and <number>.png of each clip."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, stems in enumerate(clips):
        for name, audio in zip((*names, "mix"), (*stems, stems.sum(axis=0))):
            io.write(folder / f"{number}_{name}.wav", np.clip(audio, -1.0, 1.0), sample_rate)
        plot.stems_page(folder / f"{number}.png", list(stems), list(names), sample_rate)


def held_out(
    trained: Trained, dataset: str, split: str, options: Options
) -> Float[ndarray, "N S T C"]:
    """Stems of a split, at the rate and of the names that the model knows."""
    config = trained.config.data.copy_and_resolve_references()
    with config.unlocked():
        config.update(dataset=dataset, seconds=options.seconds, batch_size=options.batch)
        config.update(stems=trained.config.stems.names, workers=0)
    data = pipeline.make_iterator(config, split=split, seed=options.seed, train=False)
    found: list[ndarray] = []
    for batch in data:
        found.extend(batch["stems"])
        if len(found) >= options.clips:
            break
    return np.stack(found[: options.clips])


def methods(models: Models, changes: dict[str, Any]) -> dict[str, Separator]:
    """The ways to take a mix apart that there are, by name; `changes` of MSDM's settings. A model
    that reads the mix tells also what is to be "expected", by a single step."""
    joint, independent, separator = models.joint, models.independent, models.separator
    found: dict[str, Separator] = {}
    kinds: tuple[str, ...]
    if isinstance(joint, LatentStems):
        kinds = THROUGH if joint.config.beside_mix else THROUGH[:1]
    else:
        kinds = tracks.likelihoods(joint)
    ways: list[tuple[str, Any, str]] = [(kind, joint, kind) for kind in kinds]
    if independent is not None:
        ways.append(("independent", independent, ""))
    own: dict[str, dict[str, Any]] = {}
    if isinstance(joint, FrozenStems) and joint.beside_mix:
        ways.append(("expected", joint, "track"))
        own = {"track": {}, "expected": {"steps": 1}}
    for name, model, kind in ways:
        settings, _ = tracks.separation(model, kind, changes=own.get(name, changes))
        found[name] = functools.partial(model.separate, **settings)
    if separator is not None:
        found["regression"] = separator.separate
    return found


def separated(
    separator: Separator, stems: Float[ndarray, "N S T C"], options: Options, name: str
) -> Float[ndarray, "N S T C"]:
    """What a method makes of the mixes of all clips."""

    def run(rows: ndarray, seeds: ndarray) -> ndarray:
        return separator(stems[rows].sum(axis=1), seeds=seeds)

    return in_batches(run, len(stems), options, name)


def in_batches(
    run: Callable[[ndarray, ndarray], ndarray], count: int, options: Options, name: str
) -> ndarray:
    """What `run` makes of the numbers and the seeds of `count` clips, batch by batch; all batches
    are full, for one compiled program."""
    parts = []
    for start in track(range(0, count, options.batch), name, unit="batches"):
        rows = np.arange(start, start + options.batch) % count
        parts.append(run(rows, options.seed + rows))
    return np.concatenate(parts)[:count]


def mix_levels(stems: Float[ndarray, "N S T C"]) -> Float[ndarray, "N S"]:
    """SI-SDR in dB of the mix as the estimate of each stem; NaN where that is silent."""
    mixes = np.broadcast_to(stems.sum(axis=1, keepdims=True), stems.shape)
    flat: Any = (x.reshape(*stems.shape[:2], -1) for x in (stems, mixes))
    levels = np.asarray(si_sdr(*flat, zero_mean=False), np.float64)
    return np.where(stems.any(axis=(2, 3)), levels, np.nan)


def improvements(
    stems: Float[ndarray, "N S T C"],
    estimates: Float[ndarray, "N S T C"],
    names: Sequence[str],
    sample_rate: int,
) -> Float[ndarray, "N S"]:
    """SI-SDRi in dB of each clip, the mean over MSDM's windows in which the stem sounds beside
    another one; NaN where there is none."""
    rows = np.full(stems.shape[:2], np.nan)
    for row, own, made in zip(rows, stems, estimates):
        gains, active = windowed_si_sdri(own, own.sum(axis=0), made, names, sample_rate)
        for stem, (gain, sounds) in enumerate(zip(gains.T, active.T)):
            if sounds.any():
                row[stem] = gain[sounds].mean()
    return rows


def intervals(
    values: Float[ndarray, "N S"], names: Sequence[str], seed: int = 0
) -> dict[str, bootstrap.Interval]:
    """Of each stem with values of two clips at least, and "mean", of the clips' means over
    stems."""
    columns = dict(zip(names, values.T))
    known = ~np.isnan(values)
    rows = known.any(axis=1)
    columns["mean"] = np.nansum(values[rows], axis=1) / known[rows].sum(axis=1)
    kept = {name: column[~np.isnan(column)] for name, column in columns.items()}
    return {
        name: bootstrap.mean_interval(column, seed=seed)
        for name, column in kept.items()
        if len(column) > 1
    }


def imputed(
    model: FrozenStems | LatentStems,
    stems: Float[ndarray, "N S T C"],
    target: str,
    changes: dict[str, Any],
    options: Options,
) -> Float[ndarray, "N T C"]:
    """The stem `target` of each clip, drawn given the others."""
    sampling = tracks.drawing_sampling(model, IMPUTATION, changes)
    others = [(stem, name) for stem, name in enumerate(model.names) if name != target]

    def run(rows: ndarray, seeds: ndarray) -> ndarray:
        given = {name: stems[rows, stem] for stem, name in others}
        return model.arrange(given, [target], seeds=seeds, sampling=sampling)[:, 0]

    return in_batches(run, len(stems), options, f"impute {target}")


def generated(
    model: FrozenStems | LatentStems, changes: dict[str, Any], options: Options
) -> Float[ndarray, "N S T C"]:
    """Clips from nothing."""
    sampling = tracks.drawing_sampling(model, GENERATION, changes)

    def run(rows: ndarray, seeds: ndarray) -> ndarray:
        return model.generate(seconds=options.seconds, seeds=seeds, sampling=sampling)

    return in_batches(run, options.clips, options, "generate")


def distances(
    stems: Float[ndarray, "N S T C"],
    fillings: Mapping[str, Float[ndarray, "N T C"]],
    made: Float[ndarray, "N S T C"],
    names: Sequence[str],
    sample_rate: int,
) -> dict[str, float]:
    """Fréchet distances of log-mel statistics to the mixes of the clips: of mixes in which a stem
    is imputed ("imputed/bass"; "missing/bass" where it is left out), and of those "generated"."""
    embed = functools.partial(frechet.logmel, sample_rate=sample_rate)
    mixes = stems.sum(axis=1)
    reference = embed(mixes)
    found = {}
    for name, filling in fillings.items():
        others = mixes - stems[:, list(names).index(name)]
        found[f"imputed/{name}"] = frechet.frechet(reference, embed(others + filling))
        found[f"missing/{name}"] = frechet.frechet(reference, embed(others))
    return found | {"generated": frechet.frechet(reference, embed(made.sum(axis=1)))}
