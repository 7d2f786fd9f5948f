"""What surrounds a training run: signals, the profiler, advice when memory is short."""

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental import multihost_utils

from mgen.errors import UserError
from mgen.train.state import TrainState
from mgen.typing import Batch, Key, Metrics


class StopOnSignal(contextlib.AbstractContextManager):
    """SIGTERM (a preempted machine) or Ctrl-C: finish the step, save, end the loop.

    A second Ctrl-C interrupts at once. Of several processes, JAX tells all of them of a SIGTERM to
    one, and at which step to end; a Ctrl-C is passed on as that.
    """

    requested = False

    def __enter__(self) -> "StopOnSignal":
        self.alone = jax.process_count() == 1
        # That of JAX stays where there are several.
        handled = (signal.SIGTERM, signal.SIGINT) if self.alone else (signal.SIGINT,)
        self._previous = {number: signal.signal(number, self._stop) for number in handled}
        return self

    def at(self, step: int) -> bool:
        """Whether to end after this step; to be called after each."""
        if self.alone:
            return self.requested
        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if not self.alone:
            signal.raise_signal(signal.SIGTERM)


def skips(settings: ml_collections.ConfigDict) -> bool:
    """Whether `train.nonfinite` is "skip"; `UserError` where it is neither that nor "stop"."""
    kind = settings.get("nonfinite", "stop")  # configs of older runs have none
    if kind not in ("stop", "skip"):
        raise UserError(f"config.train.nonfinite={kind!r}: expected 'stop' or 'skip'")
    return kind == "skip"


def skipping(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """A train step whose result is left out, but for the count of steps, where a metric or what it
    makes of the parameters is not finite; its loss is NaN then."""

    def step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Metrics]:
        new, metrics = train_step(state, batch, key)
        leaves = jax.tree.leaves((new.params, metrics))
        good = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        kept = jax.tree.map(
            lambda a, b: jnp.where(good, a, b), new, dataclasses.replace(state, step=new.step)
        )
        return kept, metrics | {"loss": jnp.where(good, metrics["loss"], jnp.nan)}

    return step


class Profiler(contextlib.AbstractContextManager):
    """Traces `steps` steps from step `start` into `workdir`/profile, for TensorBoard."""

    def __init__(self, workdir: Path, start: int, steps: int):
        self.folder, self.start, self.steps = str(workdir / "profile"), start, steps
        self.running = False

    def at(self, step: int) -> None:
        """To be called before each step."""
        inside = self.start <= step < self.start + self.steps
        if inside and not self.running:
            jax.profiler.start_trace(self.folder)
        elif self.running and not inside:
            jax.profiler.stop_trace()
        self.running = inside

    def __exit__(self, *exc: object) -> None:
        if self.running:
            jax.profiler.stop_trace()


@contextlib.contextmanager
def out_of_memory_advice() -> Iterator[None]:
    """Turns an allocator's failure into what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "out of device memory: raise optim.accumulate (same batch, smaller pieces), lower "
            "data.batch_size or data.seconds, or give train.mesh an fsdp axis"
        ) from error
