"""Checkpoints: Orbax, with the data iterator and the config beside the state.

A checkpoint at step n holds the state after n updates and the iterator after n batches, so training
goes on with batch n. Orbax writes to a temporary name and renames: a checkpoint is there whole or
not at all.
"""

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from grain import checkpoint as grain_checkpoint
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as managers

from mgen import manifest, tree
from mgen.errors import UserError
from mgen.sharding import mesh as mesh_lib
from mgen.sharding.chips import GIB
from mgen.train.state import TrainState
from mgen.train.task import Task
from mgen.typing import Params

FOLDER = "checkpoints"
# In what Orbax and its store raise where there is no room.
FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


class Checkpoints:
    """The checkpoints of one workdir, of which the latest `keep` are kept.

    Attributes:
      own: whether this run is the one that saves there; what others read is not touched, since that
        one may be at it.
    """

    def __init__(self, workdir: str | Path, keep: int = 1, own: bool = True):
        if keep < 1:
            raise UserError(f"config.train.keep={keep}: expected 1 or more")
        self.folder, self.own = Path(workdir).absolute() / FOLDER, own
        options = managers.CheckpointManagerOptions(
            create=own, read_only=not own, cleanup_tmp_directories=own,
            preservation_policy=managers.LatestN(keep),
        )  # fmt: skip
        self._manager = managers.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: Any,
        config: dict[str, Any],
    ) -> None:
        """Saves the state after `step` updates; nothing where that is there. Returns before all is
        written.

        Raises:
          UserError: there is no room, now or where the save before, which went on beside training,
            came to its end. The checkpoints that are whole stay.
        """
        if self._manager.latest_step() == step:
            return
        self._find_room(state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=grain_checkpoint.CheckpointSave(_Snapshot(iterator.get_state())),
            config=ocp.args.JsonSave(config),
        )
        with self._or_full():
            self._manager.save(step, args=args, force=True)

    def _find_room(self, state: TrainState) -> None:
        """Before a byte is written; what a quota leaves is not known."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise self._full(f"a checkpoint has {size / GIB:.3g} GiB, {free / GIB:.3g} are free")

    @contextlib.contextmanager
    def _or_full(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many kinds, after what wrote
            reason = next((words for words in FULL if words in str(error)), None)
            if reason is None:
                raise
            raise self._full(reason) from error

    def _full(self, reason: str) -> UserError:
        return UserError(
            f"{self.folder}: cannot save ({reason}); what was saved before is whole: make room and "
            "run the same command again"
        )

    def restore(self, like: TrainState, iterator: Any = None) -> TrainState:
        """The latest state that can be read, in the shapes and shardings of `like` (without a
        sharding: on this host's first device); `iterator`, if given, is set to where it was.

        Damaged checkpoints after it are warned of and, by their own run, put aside as
        damaged_<step>.

        Raises:
          UserError: there is none, or none that fits `like`.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise UserError(
                f"{self.folder}: no checkpoint here; expected a workdir of a training run"
            )
        like, reasons = jax.tree.map(_placed, like), []
        for step in steps:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            try:
                state = self._manager.restore(step, args=args).state
                if iterator is not None:
                    iterator.set_state(self._data(step))
            except (ValueError, KeyError, TypeError, OSError) as error:
                self._manager.reload()
                if (self.latest_step() or 0) > steps[0]:  # its run has put a newer one in its place
                    return self.restore(like, iterator)
                reasons.append(" ".join(str(error).split())[:300])
                continue
            damaged, fate = steps[: len(reasons)], "put aside" if self.own else "passed over"
            for other, reason in zip(damaged, reasons):
                logging.warning("%s: damaged, %s (%s)", self.folder / str(other), fate, reason)
            if damaged and self.own:
                self._put_aside(damaged)
            return state
        raise UserError(
            f"{self.folder / str(steps[0])}: checkpoint does not fit this config or is damaged "
            f"({reasons[0]})"
        )

    def _data(self, step: int) -> Any:
        """The state of this process's iterator; after a run of another number of processes that of
        its first one, which is as far on."""
        folder = self.folder / str(step) / "data"
        own = folder / f"process_{jax.process_index()}-of-{jax.process_count()}.json"
        found = [own] if own.exists() else sorted(folder.glob("process_0-of-*.json"))
        if not found:
            raise ValueError(f"{folder}: no state of the data")
        return json.loads(found[0].read_text())

    def _put_aside(self, steps: list[int]) -> None:
        """Or training, which goes on before them, could not save where they are."""
        if jax.process_index() == 0:
            for step in steps:
                (self.folder / str(step)).rename(self.folder.parent / f"damaged_{step}")
        multihost_utils.sync_global_devices("damaged checkpoints are put aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for the save under way; errors as `save`."""
        with self._or_full():
            self._manager.close()


def _placed(leaf: Any) -> Any:
    """Orbax needs to know where the arrays of a run on other devices are to be."""
    if getattr(leaf, "sharding", None) is not None:
        return leaf
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """An iterator's state as it is now: Orbax writes in a thread, while the iterator moves on."""

    state: dict[str, Any]

    def get_state(self) -> bytes:
        return json.dumps(self.state).encode()


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model as `launch/` hands it to a family's `sample.py`.

    Attributes:
      params: the averaged parameters where training kept them (of the generator for a GAN).
      variables: collections that no gradient reaches.
      fingerprint: SHA-256 of params and variables; what the manifests of derived artefacts name.
    """

    workdir: Path
    step: int
    config: ml_collections.ConfigDict
    manifest: dict[str, Any]
    params: Params
    variables: Params
    fingerprint: str


def make_task(config: ml_collections.ConfigDict) -> Task:
    """The `Task` of `mgen.<config.family>.task`."""
    try:
        module = importlib.import_module(f"mgen.{config.family}.task")
    except ModuleNotFoundError as error:
        if error.name != f"mgen.{config.family}.task" and error.name != f"mgen.{config.family}":
            raise
        raise UserError(
            f"config.family={config.family!r}: there is no mgen/{config.family}"
        ) from error
    return module.Task(config)


def load_state(
    workdir: str | Path, family: str | None = None, mesh: Mesh | None = None
) -> tuple[Task, TrainState]:
    """The task and the latest state of a workdir of `launch/train.py`; split over a mesh, if given.

    `UserError` where it is no such folder, of another family, or holds no readable checkpoint.
    """
    about = manifest.read(workdir)
    manifest.require(about, Path(workdir) / manifest.FILE, kind="model")
    if family is not None:
        manifest.require(about, Path(workdir) / manifest.FILE, family=family)
    try:
        task = make_task(ml_collections.ConfigDict(about["config"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir}: its config does not fit this version of mgen ({error})"
        ) from error
    with contextlib.closing(Checkpoints(workdir, own=False)) as checkpoints:
        like = jax.eval_shape(task.init, jax.random.key(0))
        if mesh is not None:
            like = mesh_lib.with_shardings(like, mesh_lib.state_sharding(mesh, like))
        return task, checkpoints.restore(like)


def load_trained(workdir: str | Path, family: str | None = None) -> Trained:
    """What inference needs of a workdir; errors as `load_state`."""
    task, state = load_state(workdir, family)
    # Inference computes in float32, whatever training kept them in.
    params = jax.tree.map(lambda x: x.astype(jnp.float32), task.generator_params(state))
    return Trained(
        workdir=Path(workdir),
        step=int(state.step),
        config=task.config,
        manifest=manifest.read(workdir),
        params=params,
        variables=state.variables,
        fingerprint=tree.fingerprint((params, state.variables)),
    )
