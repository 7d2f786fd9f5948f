"""Progress on standard error: a live bar on a terminal, a plain line now and then elsewhere.

Every long loop of mgen reports through here, so that they look alike: count, rate, elapsed time,
time left, and the fields that the loop wants seen (a loss, a count of failures).
`MGEN_NO_PROGRESS=1` silences it.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

PLAIN_INTERVAL = 10.0  # s between lines when standard error is not a terminal

Item = TypeVar("Item")


def clock(seconds: float) -> str:
    """`75` -> "1:15", `3675` -> "1:01:15"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """A counter with rate and time left, used as a context manager.

    Args:
      description: what is being done, in a few words.
      total: number of units to come, None where unknown.
      unit: name of what is counted, in the plural.
      initial: units that are done already (a resumed run); they count towards the total, not the
          rate.
    """

    def __init__(
        self, description: str, total: int | None = None, unit: str = "steps", initial: int = 0
    ):
        self.description, self.total, self.unit = description, total, unit
        self.done = self.initial = initial
        self.fields: dict[str, Any] = {}
        self._silent = os.environ.get("MGEN_NO_PROGRESS") == "1"
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        self._start = self._last_line = time.monotonic()
        if not self._silent and sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.initial, status=""
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._silent:
            self._line()

    def update(self, n: int = 1, **fields: Any) -> None:
        """Counts `n` more units; `fields` (strings and numbers) are shown until replaced."""
        self.done += n
        self.fields.update(fields)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, status=self.status())
        elif not self._silent and time.monotonic() - self._last_line >= PLAIN_INTERVAL:
            self._line()

    def status(self) -> str:
        """Rate, elapsed time, time left and fields: "12.0 pieces/s, 0:10, 0:30 left, loss 0.12"."""
        elapsed = time.monotonic() - self._start
        rate = (self.done - self.initial) / max(elapsed, 1e-9)
        parts = [f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{rate:.3g} {self.unit}/s"]
        parts.append(clock(elapsed))
        if self.total is not None and self.done < self.total and rate > 0:
            parts.append(f"{clock((self.total - self.done) / rate)} left")
        for name, value in self.fields.items():
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        return ", ".join(parts)

    def _line(self) -> None:
        self._last_line = time.monotonic()
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        line = f"{self.description}: {count} {self.unit}, {self.status()}"
        print(line, file=sys.stderr, flush=True)


def track(
    iterable: Iterable[Item], description: str, total: int | None = None, unit: str = "pieces"
) -> Iterator[Item]:
    """Yields from `iterable` and reports progress; `total` defaults to `len(iterable)` where it has
    one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(description, total, unit) as progress:
        for item in iterable:
            yield item
            progress.update()
