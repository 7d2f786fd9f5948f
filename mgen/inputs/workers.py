"""Batches of several data workers: which of them is waited for, and which has ended."""

import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from mgen.errors import UserError
from mgen.typing import Batch

PATIENCE = 30.0  # s


def watched(data: Iterator[Batch], patience: float = PATIENCE) -> Iterator[Batch]:
    """The batches of `data`; every `patience` seconds that one takes are logged, with the worker
    that makes it.

    Raises:
      UserError: a worker process ended; its number and exit code.
    """
    while True:
        who, ready = _whose_turn(data), threading.Event()
        threading.Thread(target=_complain, args=(who, ready, patience), daemon=True).start()
        try:
            batch = next(data)
        except StopIteration:
            return
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                f"{who} ended ({str(error).partition('.')[0]}): is memory short? Lower "
                "config.data.workers or config.data.prefetch"
            ) from error
        finally:
            ready.set()
        yield batch


def _complain(who: str, ready: threading.Event, patience: float) -> None:
    start = time.monotonic()
    while not ready.wait(patience):
        logging.warning("waiting for a batch of %s, %.0f s", who, time.monotonic() - start)


def _whose_turn(data: Any) -> str:
    """Grain asks its workers in turn, and its state says whose it is."""
    state = data.get_state() if hasattr(data, "get_state") else None
    if not isinstance(state, dict) or "next_index_in_cycle" not in state:
        return "the data pipeline"
    workers = len(state["iterators_in_use_indices"])
    return f"data worker {state['next_index_in_cycle'] + 1} of {workers}"
