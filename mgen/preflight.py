"""Does a config fit a machine that is not here? Its training step, or its sampling, compiled ahead
of time for a topology of accelerators, on a host without any.

The compiler is the TPUs' own (libtpu): what it refuses would have failed there.
"""

import dataclasses
import gzip
import hashlib
import importlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.experimental import topologies
from jax.sharding import Mesh

from mgen import files, plot
from mgen.clips import make_folder
from mgen.errors import UserError
from mgen.progress import track
from mgen.sharding import cost, hlo
from mgen.sharding.chips import CHIPS, GIB, Chip
from mgen.sharding.mesh import OnMesh, batch_shards, make_mesh, replicated, with_shardings
from mgen.train.checkpoint import make_task
from mgen.train.loop import CompiledSteps
from mgen.train.task import Task

# Of XLA for GPUs: tiles of its own matrix products are chosen by trying them out, on a GPU.
NO_TUNING = {"xla_gpu_enable_triton_gemm": False}
# Of a compiler that found no room.
NO_ROOM = ("RESOURCE_EXHAUSTED", "out of memory", "Ran out of memory")

# Devices that parameters are split over at most, where there are more. Over all devices of a slice
# of v5p (64, 512) the compiler gathers by sums, twice the bytes.
SPLIT = 64


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled program on one device, in bytes, operations and seconds.

    Attributes:
      arguments, temporaries, peak: memory; limit: what a device has.
      flops: of all devices together. traffic: what a device moves to and from its memory.
      collectives: bytes that a device receives, by kind.
      seconds: to compile.
    """

    devices: int
    batch: int
    arguments: float
    temporaries: float
    peak: float
    limit: float
    flops: float
    traffic: float
    collectives: dict[str, float]
    seconds: float

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit

    def bounds(self, chip: Chip) -> dict[str, float]:
        """Least seconds a step for each of "compute", "memory" and "links"."""
        return {
            "compute": self.flops / self.devices / chip.flops,
            "memory": self.traffic / chip.bandwidth,
            "links": sum(self.collectives.values()) / chip.link,
        }

    @property
    def intensity(self) -> float:
        """Operations for each byte to or from memory."""
        return self.flops / self.devices / max(self.traffic, 1.0)

    def utilisation(self, chip: Chip) -> float:
        """The most that a step can make of the device's FLOPs, everything overlapping."""
        bounds = self.bounds(chip)
        return bounds["compute"] / max(*bounds.values(), 1e-12)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is kept of a program: why it was refused ("": it was not), memory in bytes, text,
    seconds of the compiler."""

    refusal: str
    arguments: float = 0.0
    temporaries: float = 0.0
    peak: float = 0.0
    text: str = ""
    seconds: float = 0.0


def quickly() -> None:
    """From here on asks the compiler for less effort. Not by the environment: configs, which flags
    read, have imported jax already."""
    jax.config.update("jax_exec_time_optimization_effort", -1.0)


def chip_of(topology: str) -> Chip:
    """Of "v5e:2x4"; `UserError` for a chip that there is not."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        known = ", ".join(CHIPS)
        raise UserError(f"--topology={topology}: expected CHIP:SHAPE with one of {known}")
    return CHIPS[name]


def devices_of(topology: str, slices: int = 1) -> list[Any]:
    """The devices of a topology such as "v5e:2x4", or "h100:2x8" (hosts and GPUs of each);
    `UserError` where it cannot be had."""
    name, _, shape = topology.partition(":")
    chip = chip_of(topology)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    platform = "tpu"
    if chip.gpu is not None:
        jax.devices()  # looks for plugins
        platform = "cuda"
        options = dict(target_config=chip.gpu.target(chip), topology=f"{slices}x{shape}")
    elif name == "v4":
        options |= {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    elif shape.replace("x", "").strip("1") == "":
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform=platform, topology_name=topology, **options)
    except Exception as error:
        reason = str(error).splitlines()[0]
        extra = "preflight" if platform == "tpu" else "preflight-gpu"
        raise UserError(
            f"--topology={topology}: {reason} (expected `pip install 'mgen[{extra}]'` and a "
            "shape of that chip)"
        ) from error
    return list(found.devices)


def compiled_program(
    config: ml_collections.ConfigDict,
    devices: list[Any],
    limit: float,
    program: str = "train",
    kept: Path | None = None,
) -> Report:
    """A program of an experiment ("train", a step, or "sample", `Task.sample`) on `devices`, by its
    `train.mesh`.

    The batch is `data.batch_size`, of all devices together, made a multiple of what it is split
    into. A program that is in the folder `kept` is not compiled again.

    Raises:
      MemoryError: the compiler found no room, with its words.
    """
    mesh = make_mesh(config.train.mesh, devices)
    task = make_task(config)
    shards = batch_shards(mesh)
    batch = -(-config.data.batch_size // shards) * shards
    function, jitted, arguments = _program(task, mesh, batch, program)
    with jax.set_mesh(mesh):
        trips = task.sample_steps if program == "sample" else 1
        operations = cost.flops(jax.make_jaxpr(function)(*arguments), trips)
    lowered = jitted.lower(*arguments)
    file = None if kept is None else kept / f"{_fingerprint(lowered, devices)}.json.gz"
    if file is not None and file.exists():
        made = Compiled(**json.loads(gzip.decompress(file.read_bytes())))
    else:
        made = _compile(lowered, devices)
        if file is not None:
            packed = gzip.compress(json.dumps(dataclasses.asdict(made)).encode(), 6)
            with files.replacing(file) as temporary:
                temporary.write_bytes(packed)
    if made.refusal:
        raise MemoryError(made.refusal)
    text = hlo.Program.parse(made.text, trips)
    return Report(
        devices=len(devices),
        batch=batch,
        arguments=made.arguments,
        temporaries=made.temporaries,
        peak=made.peak,
        limit=limit,
        flops=operations,
        traffic=text.traffic(),
        collectives=text.collective_bytes(),
        seconds=made.seconds,
    )


def _compile(lowered: Any, devices: list[Any]) -> Compiled:
    options = None if devices[0].platform == "tpu" else NO_TUNING
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except Exception as error:
        told = str(error).splitlines()
        lines = [line for line in told if any(words in line for words in NO_ROOM)]
        if not lines:
            raise
        return Compiled(lines[0].strip())
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    # The new state takes the place of the old one.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = arguments + temporaries + results
    return Compiled("", arguments, temporaries, peak, compiled.as_text(), seconds)


def _fingerprint(lowered: Any, devices: list[Any]) -> str:
    """Of what a compiler is given and of the compiler."""
    compiler = jax.__version__, devices[0].client.platform_version
    effort = jax.config.values["jax_exec_time_optimization_effort"]
    parts = [*compiler, effort, devices, lowered.as_text()]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:24]


def _program(task: Task, mesh: Mesh, batch: int, program: str) -> tuple[Any, OnMesh, tuple]:
    """A function, the same jitted on a mesh, and what it is called with, as shapes in place."""
    steps = CompiledSteps(task, mesh)
    everywhere = replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))

    state = with_shardings(steps.abstract, steps.state_sharding)
    data = with_shardings(task.batch_spec(batch), steps.batch_sharding)
    key = with_shardings(key, everywhere)
    if program == "train":
        return task.train_step, steps.train, (state, data, key)
    # What sampling does not read of the state, such as the optimiser's, takes no memory.
    return task.sample, OnMesh(mesh, jax.jit(task.sample)), (state, data, key)


def fitting_program(
    config: ml_collections.ConfigDict,
    devices: list[Any],
    chip: Chip,
    program: str = "train",
    kept: Path | None = None,
) -> Report:
    """`compiled_program`; `MemoryError` also where the compiler has just made it and the device
    would be fuller than full."""
    report = compiled_program(config, devices, chip.memory, program, kept)
    if not report.fits:
        raise MemoryError(f"peak of {report.peak / GIB:.2f} of {report.limit / GIB:.0f} GiB")
    return report


def remedies(
    config: ml_collections.ConfigDict, devices: int
) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
    """What to change where there is no room, each on top of the one before: parameters split over
    all devices, activations computed anew, smaller batches down to an example a device."""
    flat: dict[str, Any] = {"train.mesh": "fsdp=-1"}
    if config.train.mesh != "fsdp=-1":
        yield _changed(config, flat)
    keep = {"none": "full", "dots": "full", False: True}
    found = {name: keep[kind] for name, kind in _remat(config.model, "model") if kind in keep}
    if found:
        flat |= found
        yield _changed(config, flat)
    batch = config.data.batch_size // 2
    while batch >= devices:
        yield _changed(config, flat | {"data.batch_size": batch})
        batch //= 2


def _remat(part: ml_collections.ConfigDict, path: str) -> Iterator[tuple[str, Any]]:
    """What the parts of a model keep of their activations, by the path of the field."""
    for name, value in part.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _remat(value, f"{path}.{name}")
        elif name == "remat":
            yield f"{path}.remat", value


def _changed(
    config: ml_collections.ConfigDict, flat: dict[str, Any]
) -> tuple[str, ml_collections.ConfigDict]:
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.update_from_flattened_dict(flat)
    return " ".join(f"--config.{name}={value}" for name, value in flat.items()), changed


def full_size() -> dict[str, ml_collections.ConfigDict]:
    """The shipped configs but the tiny ones, each of their choices: {"hierarchy/yue_7b:tracks":
    ...}."""
    import mgen.configs

    found = {}
    for path in sorted(Path(mgen.configs.__path__[0]).glob("*/*.py")):
        folder, name = path.parent.name, path.stem
        if name.startswith(("tiny", "_")) or folder == "ablation":
            continue
        module = importlib.import_module(f"mgen.configs.{folder}.{name}")
        choices = tuple(getattr(module, "STAGES", ())) or getattr(module, "CHOICES", ("",))
        for choice in choices:
            label = f"{folder}/{name}:{choice}" if choice else f"{folder}/{name}"
            found[label] = module.get_config(choice)
    return found


class Program(NamedTuple):
    """A config's training step ("train") or sampling ("sample") on a machine, by its
    `train.mesh`."""

    name: str
    config: ml_collections.ConfigDict
    topology: str
    slices: int = 1
    program: str = "train"


def table(programs: Sequence[Program], kept: Path | None = None) -> bool:
    """Prints a row for each program, for one that does not fit what does; returns whether all of
    them fit. `kept` as `compiled_program`."""
    machines = {(p.topology, p.slices): devices_of(p.topology, p.slices) for p in programs}
    rows, failures, alone = [], [], len(programs) == 1
    for program in track(programs, "compiling", unit="programs"):
        devices, chip = machines[program.topology, program.slices], chip_of(program.topology)
        try:
            report = fitting_program(program.config, devices, chip, program.program, kept)
            rows.append(describe(program, report, chip))
            if alone:
                print(
                    *(f"{kind}: {size / GIB:.3f} GiB" for kind, size in report.collectives.items())
                )
        except MemoryError as error:
            found = _what_fits(program, devices, chip, kept)
            rows += [describe(changed, report, chip) for changed, _, report in found]
            advice = "".join(f"; with {said} it does" for _, said, _ in found)
            failures.append(f"{program.name} does not fit ({error}){advice}")
        except (UserError, jax.errors.JaxRuntimeError) as error:
            if alone:
                raise
            failures.append(f"{program.name}: {str(error).splitlines()[0]}")
    if rows:
        print_rows(rows, "GiB and ms of a device")
    print(*failures, sep="\n")
    return not failures


_FULL = {"model.remat": "full"}
# What each of the large configs is meant for: config, topology, mesh, examples of all devices
# together, other fields, program.
_PODS: tuple[tuple[str, str, str, int, dict[str, Any], str], ...] = (
    ("hierarchy/musiclm_430m:semantic", "v5e:2x4", "fsdp=8", 64, _FULL, "train"),
    ("hierarchy/musiclm_430m:coarse", "v5e:2x4", "fsdp=8", 64, _FULL, "train"),
    ("hierarchy/musiclm_430m:coarse", "v5e:2x4", "fsdp=8", 8, {}, "sample"),
    ("hierarchy/musiclm_430m:fine", "v5e:2x4", "fsdp=8", 64, _FULL, "train"),
    ("hierarchy/musicgen_large", "v5e:16x16", "fsdp=256", 256, _FULL, "train"),
    ("hierarchy/yue_7b:tracks", "v5p:8x8x16", "data=8,fsdp=128", 1024, _FULL, "train"),
    ("stems/latent_stems_1b", "v5p:4x4x4", "fsdp=64", 64, _FULL, "train"),
    ("codec/encodec_32khz", "v5e:2x2", "data=4", 16, {}, "train"),
    ("stems/msdm_slakh", "v5e:2x4", "fsdp=8", 8, {}, "train"),
)


def pods() -> list[Program]:
    """Full-size configs on the machines that they are meant for."""
    every, found = full_size(), []
    for name, topology, mesh, batch, fields, program in _PODS:
        config = ml_collections.ConfigDict(every[name].to_dict())
        changes = {"train.mesh": mesh, "data.batch_size": batch, **fields}
        config.update_from_flattened_dict(changes)
        found.append(Program(name, config, topology, program=program))
    return found


def print_rows(rows: list[dict[str, str]], title: str) -> None:
    """As a table."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title)
    for name in rows[0]:
        shown.add_column(name, no_wrap=True)
    for row in rows:
        shown.add_row(*row.values())
    Console(width=220).print(shown)


def _what_fits(
    program: Program, devices: list[Any], chip: Chip, kept: Path | None
) -> list[tuple[Program, str, Report]]:
    """The first of the remedies that compiles, if there is one."""
    for said, config in remedies(program.config, len(devices)):
        try:
            report = fitting_program(config, devices, chip, program.program, kept)
        except MemoryError:
            continue
        return [(program._replace(config=config), said, report)]
    return []


def describe(program: Program, report: Report, chip: Chip) -> dict[str, str]:
    """A row of the table."""
    slices = f"{program.slices} x " if program.slices > 1 else ""
    bounds = report.bounds(chip)
    largest = max(bounds, key=lambda kind: bounds[kind])
    return {
        "config": program.name + (", sampling" if program.program == "sample" else ""),
        "machine": f"{slices}{program.topology} {program.config.train.mesh}",
        "devices": str(report.devices),
        "batch": str(report.batch),
        "arguments": f"{report.arguments / GIB:.2f}",
        "temporaries": f"{report.temporaries / GIB:.2f}",
        "peak": f"{report.peak / GIB:.2f} of {report.limit / GIB:.0f}",
        "TFLOP": f"{report.flops / 1e12:.1f}",
        "FLOP/B": f"{report.intensity:.0f}",
        "links": f"{sum(report.collectives.values()) / GIB:.2f}",
        "step": f"{1e3 * max(bounds.values()):.1f} ms ({largest})",
        "MFU": f"{report.utilisation(chip):.0%}",
        "compile": f"{report.seconds:.0f} s",
    }


def scaling(
    configs: dict[str, tuple[ml_collections.ConfigDict, int]], over: list[str], out: Path
) -> None:
    """Weak scaling as compiled: a table of the bounds of a step over growing topologies, with the
    same batch a device, to out/scaling.json and, as a picture, out/scaling.png.

    Args:
      configs: experiments by name, and the examples of a step on each device.
      over: topologies; `UserError` for none.
    """
    if not over:
        raise UserError("--topologies: expected at least one")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kept = make_folder(out / "programs")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in configs}
    jobs = [(name, topology) for name in configs for topology in over]
    for name, topology in track(jobs, "compiling", unit="programs"):
        config, each = configs[name]
        chip, devices = chip_of(topology), devices_of(topology)
        config = ml_collections.ConfigDict(config.to_dict())
        config.data.batch_size = each * len(devices)
        config.train.mesh = f"data=-1,fsdp={min(len(devices), SPLIT)}"
        report = compiled_program(config, devices, chip.memory, "train", kept)
        rows[name].append(
            describe(Program(name, config, topology), report, chip)
            | {"bounds": report.bounds(chip), "utilisation": report.utilisation(chip)}
        )
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for number, (name, found) in enumerate(rows.items()):
        counts, color = [int(row["devices"]) for row in found], f"C{number}"
        for kind, style in (("", "o-"), ("links", ":"), ("memory", "--")):
            bounds = (row["bounds"] for row in found)
            times = [1e3 * (each[kind] if kind else max(each.values())) for each in bounds]
            axes[0].plot(counts, times, style, color=color, label=f"{name} {kind}")
        axes[1].plot(counts, [100 * r["utilisation"] for r in found], "o-", color=color, label=name)
    for axis, label in zip(axes, ("bound of a step, ms", "bound of MFU, %")):
        axis.set(xlabel="devices", ylabel=label, ylim=(0, None))
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, counts)
        axis.legend(fontsize="x-small")
    figure.tight_layout()
    plot.save(out / "scaling.png", figure)
    plt.close(figure)
    files.write_json(out / "scaling.json", rows)
    for found in rows.values():
        shown = [{k: v for k, v in row.items() if isinstance(v, str)} for row in found]
        print_rows(shown, "the same batch a device")
