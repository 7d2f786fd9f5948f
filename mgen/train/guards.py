"""What surrounds a training run: signals, the profiler, advice when memory is short."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import jax

from mgen.errors import UserError


class StopOnSignal(contextlib.AbstractContextManager):
    """SIGTERM (a preempted machine) or Ctrl-C: finish the step, save, end the loop.

    A second Ctrl-C interrupts at once.
    """

    requested = False

    def __enter__(self) -> "StopOnSignal":
        self._previous = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


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
