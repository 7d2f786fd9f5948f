"""Data workers that stop or die, while their batches are waited for."""

import multiprocessing
import os
import re
import signal
import threading

import numpy as np
import pytest

from mgen.errors import UserError
from mgen.inputs import pipeline, workers

CONFIG = dict(view="stems", sample_rate=8000, seconds=0.25, batch_size=2, prefetch=1)


def batches(dataset, **options):
    config = pipeline.default_config(dataset=str(dataset), **CONFIG, **options)
    return pipeline.make_iterator(config, split="train", seed=0, train=True)


def test_a_slow_and_a_dead_worker_are_named(scores, monkeypatch):
    said, waking = [], None

    def hear(form, *values):
        said.append(form % values)
        if waking is not None:
            waking()

    monkeypatch.setattr(workers.logging, "warning", hear)
    iterator, expected = batches(scores, workers=2), batches(scores)
    try:
        data = workers.watched(iterator, patience=5.0)
        for _ in range(4):
            np.testing.assert_array_equal(next(data)["mix"], next(expected)["mix"])
        victim = multiprocessing.active_children()[0]

        # It stands still until it is complained about, and what it makes is what it would have.
        os.kill(victim.pid, signal.SIGSTOP)
        waking = lambda: os.kill(victim.pid, signal.SIGCONT)  # noqa: E731
        for _ in range(8):  # what is made ahead is there for a while
            np.testing.assert_array_equal(next(data)["mix"], next(expected)["mix"])
        slow = set(
            re.findall(r"waiting for a batch of (data worker [12] of 2), \d+ s", "; ".join(said))
        )
        assert len(slow) == 1

        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"ended \(.* exit code -9\): .*data.workers") as error:
            for _ in range(8):
                next(data)
        assert str(error.value).startswith(slow.pop())
    finally:
        iterator.close()


def test_without_workers_nothing_is_said_and_no_thread_is_left(monkeypatch):
    monkeypatch.setattr(workers.logging, "warning", pytest.fail)
    before = set(threading.enumerate())
    assert list(workers.watched(iter([{"x": 1}, {"x": 2}]), 10.0)) == [{"x": 1}, {"x": 2}]
    for thread in set(threading.enumerate()) - before:
        thread.join(5.0)
        assert not thread.is_alive()


def test_other_errors_are_themselves():
    def broken():
        raise RuntimeError("a tensor of the wrong shape")
        yield

    with pytest.raises(RuntimeError, match="wrong shape"):
        next(workers.watched(broken()))
