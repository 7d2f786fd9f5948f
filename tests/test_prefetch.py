"""Work ahead of its caller."""

import threading

import pytest

from mgen.prefetch import ahead


def test_results_come_in_order_and_one_is_made_ahead():
    second = threading.Event()

    def make(number):
        if number == 1:
            second.set()
        return number, threading.current_thread()

    results = ahead(make, range(4))
    first, thread = next(results)
    # The next one is made without being asked for, in a thread.
    assert first == 0 and second.wait(timeout=10) and thread is not threading.current_thread()
    assert [number for number, _ in results] == [1, 2, 3]
    assert list(ahead(make, [])) == []


def test_an_error_comes_where_its_result_would():
    results = ahead(lambda x: 1 // x, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
