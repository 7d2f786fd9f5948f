"""What a training run does when it is told to stop or runs out of memory."""

import contextlib
import signal
from collections.abc import Iterator

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
