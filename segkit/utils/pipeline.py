"""Reading, computing and writing at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Input = TypeVar("Input")
Output = TypeVar("Output")


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Input],
    compute: Callable[[Item, Input], Output],
    write: Callable[[Item, Output], None],
    discard: Callable[[Input], None] = lambda _contents: None,
) -> Iterator[Item]:
    """Yield each item once it is written; while one is computed, the next is read and the last one is written.

    `read` and `write` run in one thread each, `compute` in that of the caller, so that at most three items are in
    memory. `items` is asked for the next item before the last one is finished. An error of any function ends the
    iteration when its item's turn has come; what is being written then is written to its end, and what was read ahead
    goes to `discard`.
    """
    upcoming = iter(items)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading = _submitted(reader, read, upcoming)
        writing: tuple[Item, Future[None]] | None = None
        try:
            while reading is not None:
                item, contents = reading
                reading = None
                received = contents.result()
                del contents
                reading = _submitted(reader, read, upcoming)
                output = compute(item, received)
                del received
                if writing is not None:
                    yield _finished(writing)
                writing = item, writer.submit(write, item, output)
                del output
            if writing is not None:
                yield _finished(writing)
        finally:
            if reading is not None and reading[1].exception() is None:
                discard(reading[1].result())


def _submitted(
    executor: ThreadPoolExecutor, read: Callable[[Item], Input], items: Iterator[Item]
) -> tuple[Item, Future[Input]] | None:
    """The next item, which is being read; None at the end."""
    for item in items:
        return item, executor.submit(read, item)
    return None


def _finished(writing: tuple[Item, Future[None]]) -> Item:
    item, future = writing
    future.result()
    return item
