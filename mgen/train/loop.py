"""The training loop of every family.

`train` reads top to bottom: place the state on the mesh, find where to start, then for each step:
next batch, step, look at the metrics, save, evaluate. Kill the process at any moment and run the
same command again: it goes on from the last checkpoint to the same weights, bit for bit (on the
same device count).
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mgen import manifest
from mgen.errors import UserError
from mgen.inputs.workers import watched
from mgen.progress import Progress
from mgen.sharding import mesh as mesh_lib
from mgen.sharding.mesh import OnMesh
from mgen.sharding.options import overlapping
from mgen.train.checkpoint import Checkpoints
from mgen.train.guards import Profiler, StopOnSignal, out_of_memory_advice, skipping, skips
from mgen.train.logging import MetricWriter, make_writer
from mgen.train.state import TrainState
from mgen.train.task import Task
from mgen.typing import Batch, Key


def default_config(**overrides: Any) -> ml_collections.ConfigDict:
    """The loop's fields of every config.

    Counts are in steps; 0 stands for never, but the last step is logged and saved.

      eval_every, eval_batches: how often to evaluate, on how many held-out batches (0: not at all).
      summary_every: audio and pictures; a multiple of `eval_every`.
      save_every, keep: how often to save, how many checkpoints stay.
      mesh: see `mgen.sharding.mesh`.
      resume: workdir whose whole state to go on from, and
      init_from: workdir whose weights to start from, while this one has no checkpoint of its own.
      profile_start, profile_steps: trace that many steps from that one.
      overlap: whether XLA is asked to move data between devices beside computation, see
        `mgen.sharding.options`.
      nonfinite: what happens at a step with a NaN: "stop", or "skip" it; its batch is written down.
    """
    config = ml_collections.ConfigDict(
        dict(
            steps=1000,
            log_every=50,
            eval_every=0,
            eval_batches=8,
            summary_every=0,
            save_every=500,
            keep=1,
            mesh="data=-1",
            resume="",
            init_from="",
            profile_start=10,
            profile_steps=0,
            overlap=False,
            nonfinite="stop",
        )
    )
    config.update(overrides)
    return config


def train(
    task: Task,
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    make_data: Callable[[bool], Iterator[Batch]],
    parents: dict[str, str] | None = None,
) -> int:
    """Trains to `config.train.steps` and returns the steps done: fewer where a signal stopped it.

    Args:
      make_data: from `train` (bool) to an iterator over this process's part of each batch; the
        training one is endless and has Grain's `get_state`/`set_state`, the evaluation one is a
        fixed pass, the same each time.
      parents: name -> fingerprint of the artefacts that this model is trained on, for the manifest.

    Raises `UserError` where the workdir belongs to another config, the data does not fit the task,
    memory is short, or a metric is not finite.
    """
    workdir, settings = Path(workdir), config.train
    compiled = CompiledSteps(task, mesh_lib.make_mesh(settings.mesh))
    root_key = jax.random.key(config.seed)
    checkpoints = Checkpoints(workdir, settings.keep)
    claim_workdir(workdir, task, config, parents or {}, checkpoints.latest_step() is not None)
    iterator = make_data(True)
    state = initial_state(task, config, compiled, checkpoints, iterator)
    step = int(state.step)
    stop = StopOnSignal()
    plain_config = config.to_dict()
    made = watched(iterator)
    eval_every = settings.eval_every if settings.eval_batches else 0

    with (
        contextlib.closing(make_writer(workdir / "logs")) as writer,
        contextlib.closing(checkpoints),
        Progress(f"train {task.family}", settings.steps, "steps", initial=step) as progress,
        stop,
        Profiler(workdir, settings.profile_start, settings.profile_steps) as profiler,
        out_of_memory_advice(),
        jax.transfer_guard("disallow"),  # an implicit host-device copy in the loop is a bug
    ):
        watch = _Watch(task, writer, progress, step, workdir)
        while step < settings.steps:
            batch = compiled.put(next(made))
            profiler.at(step)
            state, metrics = compiled.train(state, batch, compiled.key(root_key, step))
            step += 1
            stopped = stop.at(step)
            last = step == settings.steps or stopped

            # Look before saving: a state with a NaN in it must never replace a good checkpoint.
            log = last or due(step, settings.log_every)
            save = last or due(step, settings.save_every)
            if log or save or watch.skips:
                watch.check(step, metrics, batch, log)
            # Save before evaluating: evaluation may be long, and the iterator now stands after
            # exactly `step` batches.
            if save:
                checkpoints.save(step, state, iterator, plain_config)
            if eval_every and (last or due(step, eval_every)):
                data = make_data(False)
                means, first = evaluate(compiled, state, data, settings.eval_batches, root_key)
                watch.write(step, {f"eval/{name}": value for name, value in means.items()})
                if settings.summary_every and (last or due(step, settings.summary_every)):
                    with jax.transfer_guard("allow"):
                        watch.write_summaries(step, task.summaries(state, first, root_key))
            progress.update()
            if stopped:
                break
    return step


def due(step: int, every: int) -> bool:
    """Whether `step` is one of those that come every so many; none is where `every` is 0."""
    return every > 0 and step % every == 0


# Steps in a row that `train.nonfinite` = "skip" forgives.
MOST_SKIPPED = 20


class CompiledSteps:
    """A task's functions jitted with their shardings on a mesh; `train` donates its state."""

    def __init__(self, task: Task, mesh: Mesh):
        self.task = task
        self.shards = mesh_lib.batch_shards(mesh)
        self.abstract = jax.eval_shape(task.init, jax.random.key(0))
        self.state_sharding = mesh_lib.state_sharding(mesh, self.abstract)
        self.batch_sharding = {
            name: mesh_lib.batch_sharding(mesh, leaf.shape)
            for name, leaf in task.batch_spec(1).items()
        }
        everywhere = mesh_lib.replicated(mesh)
        state, batch = self.state_sharding, self.batch_sharding
        self.init = jax.jit(task.init, out_shardings=state)
        train = jax.jit(
            skipping(task.train_step) if skips(task.config.train) else task.train_step,
            in_shardings=(state, batch, everywhere),
            out_shardings=(state, everywhere),
            donate_argnums=0,
            compiler_options=overlapping(mesh) if task.config.train.get("overlap") else None,
        )
        evaluate = jax.jit(
            task.eval_step,
            in_shardings=(state, batch, everywhere),
            out_shardings=everywhere,
        )
        self.train, self.eval = OnMesh(mesh, train), OnMesh(mesh, evaluate)
        self._fold_in = jax.jit(jax.random.fold_in, out_shardings=everywhere)

    def key(self, root: Key, step: int) -> Key:
        """The key of a step: a function of the seed and the step alone, so that a resumed run draws
        the same."""
        with jax.transfer_guard("allow"):  # two numbers, to every device
            return self._fold_in(root, np.uint32(step))

    def put(self, batch: Batch) -> Batch:
        """This process's part of a batch, checked against the task and the mesh, as global arrays
        there."""
        size = next(iter(batch.values())).shape[0]
        spec, whole = self.task.batch_spec(size), size * jax.process_count()
        if whole % self.shards:
            raise UserError(
                f"config.data.batch_size={whole}: no multiple of the {self.shards} parts that the "
                "mesh splits it into (data times fsdp)"
            )
        for name, want in spec.items():
            have = batch.get(name)
            if have is None or have.shape != want.shape or have.dtype != want.dtype:
                found = "nothing" if have is None else f"{have.dtype}{list(have.shape)}"
                raise UserError(
                    f"config.data: batch[{name!r}] is {found}, {self.task.family} expects "
                    f"{np.dtype(want.dtype)}{list(want.shape)}"
                )
        # The one copy to the device that is meant to be.
        with jax.transfer_guard("allow"):
            return {
                name: jax.make_array_from_process_local_data(self.batch_sharding[name], batch[name])
                for name in spec
            }


def initial_state(
    task: Task,
    config: ml_collections.ConfigDict,
    compiled: CompiledSteps,
    checkpoints: Checkpoints,
    iterator: Iterator[Batch],
) -> TrainState:
    """The state to start from: own checkpoint, then `resume`, then `init_from`, then scratch."""
    like = mesh_lib.with_shardings(compiled.abstract, compiled.state_sharding)
    if checkpoints.latest_step() is not None:
        return checkpoints.restore(like, iterator)
    if config.train.resume:
        with contextlib.closing(Checkpoints(config.train.resume, own=False)) as other:
            return other.restore(like, iterator)
    state = compiled.init(jax.random.key(config.seed))
    state = jax.device_put(task.warm_start(state), compiled.state_sharding)
    if config.train.init_from:
        with contextlib.closing(Checkpoints(config.train.init_from, own=False)) as other:
            trained = other.restore(like)
        state = state.replace(params=trained.params, variables=trained.variables, ema=trained.ema)
    return state


def claim_workdir(
    workdir: Path,
    task: Task,
    config: ml_collections.ConfigDict,
    parents: dict[str, str],
    trained: bool,
) -> None:
    """Writes the manifest, or refuses a workdir that was trained from another config (`train` and
    workers may change)."""

    def identity(settings: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in settings.items() if name != "train"}
        kept["data"] = {k: v for k, v in kept["data"].items() if k not in ("workers", "prefetch")}
        return kept

    files = {name: Path(source).read_bytes() for name, source in task.files().items()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    about = {
        "kind": "model",
        "family": task.family,
        "config": _jsonable(config.to_dict()),
        "parents": parents,
        "files": hashes,
        **task.manifest(),
    }
    mine = {"config": identity(about["config"]), "parents": parents, "files": hashes}
    if trained:
        before = manifest.read(workdir)
        theirs = {"config": identity(before["config"]), "parents": before["parents"]}
        theirs["files"] = before.get("files", {})
        if theirs != mine:
            raise UserError(
                f"{workdir}: was trained otherwise ({_first_difference(theirs, mine)}); "
                "use another --workdir"
            )
    if jax.process_index() == 0:
        for name, data in files.items():
            (workdir / name).parent.mkdir(parents=True, exist_ok=True)
            (workdir / name).write_bytes(data)
        manifest.write(workdir, about | {"config_hash": manifest.config_hash(mine)})


def evaluate(
    compiled: CompiledSteps, state: TrainState, data: Iterator[Batch], batches: int, root_key: Key
) -> tuple[dict[str, float], Batch]:
    """Mean metrics over at most `batches` batches, each with its own fixed key; and the first."""
    total: dict[str, float] = {}
    first: Batch = {}
    count = 0
    for index, host_batch in zip(range(batches), watched(data)):
        batch = compiled.put(host_batch)
        metrics = jax.device_get(compiled.eval(state, batch, compiled.key(root_key, index)))
        total = {name: total.get(name, 0.0) + float(value) for name, value in metrics.items()}
        first = first or batch
        count += 1
    if not count:
        raise UserError(
            "config.data: the evaluation split gives no full batch; lower data.batch_size"
        )
    return {name: value / count for name, value in total.items()}, first


class _Watch:
    """Reads metrics back from the device, stops on values that are not finite, writes and shows
    them."""

    def __init__(
        self, task: Task, writer: MetricWriter, progress: Progress, step: int, workdir: Path
    ):
        self.task, self.writer, self.progress, self.workdir = task, writer, progress, workdir
        self.last_step, self.last_time = step, time.monotonic()
        self.skips = skips(task.config.train)
        self.skipped = 0  # steps in a row
        self.warned: set[str] = set()

    def check(self, step: int, metrics: Batch, batch: Batch, log: bool) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if bad:
            self._not_finite(step, f"{', '.join(bad)} not finite ({values[bad[0]]})", batch)
            return
        self.skipped = 0
        if not log:
            return
        for warning in self.task.warnings(values):
            if warning not in self.warned:
                self.warned.add(warning)
                print(f"warning: step {step}: {warning}", flush=True)
        now = time.monotonic()
        values["steps_per_second"] = (step - self.last_step) / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        self.write(step, {f"train/{name}": value for name, value in values.items()})

    def _not_finite(self, step: int, what: str, batch: Batch) -> None:
        """Stops, or warns of a step that was skipped; writes down its batch."""
        self.skipped += 1
        path = self.workdir / f"nonfinite_{step}_{jax.process_index()}.npz"
        arrays = {name: x.addressable_data(0) for name, x in batch.items()}
        np.savez(path, **jax.device_get(arrays))
        size = next(iter(batch.values())).shape[0]
        rows = f"{(step - 1) * size} to {step * size - 1}"
        where = f"noticed at examples {rows} of the stream, see {path}"
        if not self.skips or self.skipped > MOST_SKIPPED:
            raise UserError(
                f"step {step}: {what}; stopped, the last checkpoint is intact ({where}); lower "
                "optim.learning_rate or set optim.clip"
            )
        print(f"warning: step {step}: {what}; skipped ({where})", flush=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        if jax.process_index():
            return
        self.writer.write_scalars(step, values)
        shown = {name: v for name, v in values.items() if name.endswith("/loss")}
        self.progress.update(0, **shown)

    def write_summaries(self, step: int, summaries: dict[str, Any]) -> None:
        for name, value in summaries.items():
            if name.startswith("audio/"):
                audio, sample_rate = value
                self.writer.write_audios(step, {name: audio}, sample_rate=sample_rate)
            else:
                self.writer.write_images(step, {name: np.asarray(value)[None]})
        self.writer.flush()


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, list | tuple) else value


def _first_difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(set(old) | set(new)):
            if old.get(name) != new.get(name):
                return _first_difference(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
    return f"{path} was {old!r}, is {new!r}"
