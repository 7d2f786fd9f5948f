"""Work that is done in a thread while its caller is busy with what was done before."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """make(item) of each in order; a thread makes the next one while the caller has this one."""
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Made] | None = None
        for item in items:
            made, coming = coming, pool.submit(make, item)
            if made is not None:
                yield made.result()
        if coming is not None:
            yield coming.result()
