"""Reading, computing and writing overlap, in order, and errors are not lost."""

import threading

import pytest

from segkit.utils.pipeline import overlapped


def test_the_next_item_is_read_and_the_last_one_written_meanwhile():
    """Item 1 is computed only once item 2 is being read and item 0 is being written, or this test hangs."""
    reading, writing, written = threading.Event(), threading.Event(), []

    def read(item):
        if item == 2:
            reading.set()
        return item * 10

    def compute(item, contents):
        if item == 1:
            assert reading.wait(30)
            assert writing.wait(30)
        return contents + 1

    def write(item, result):
        if item == 0:
            writing.set()
        written.append((item, result))

    assert list(overlapped(range(4), read, compute, write)) == [0, 1, 2, 3]
    assert written == [(0, 1), (1, 11), (2, 21), (3, 31)]


def test_an_item_is_yielded_when_it_is_written():
    written = []
    for item in overlapped(
        range(5), lambda item: item, lambda _item, read: read, lambda item, _r: written.append(item)
    ):
        assert item in written
        assert len(written) <= item + 2


def test_no_more_than_one_item_is_read_ahead():
    taken = []

    def items():
        for item in range(6):
            taken.append(item)
            yield item

    for item in overlapped(items(), lambda item: item, lambda _item, read: read, lambda _item, _result: None):
        assert taken[-1] <= item + 3


@pytest.mark.parametrize("step", ["read", "compute", "write"])
def test_an_error_of_any_step_ends_it_after_what_was_before(step):
    done = []

    def failing(name):
        def function(item, *_results):
            if name == step and item == 2:
                raise OSError(f"{name} failed")
            return item

        return function

    with pytest.raises(OSError, match=f"{step} failed"):
        done.extend(overlapped(range(5), failing("read"), failing("compute"), failing("write")))
    assert done == [0, 1][: len(done)]
    assert len(done) >= 1
    assert list(overlapped([], failing("read"), failing("compute"), failing("write"))) == []


@pytest.mark.parametrize("step", ["compute", "write", "caller"])
def test_what_was_read_ahead_is_discarded_at_an_error(step):
    opened, discarded = [], []

    def read(item):
        opened.append(item)
        return item

    def failing(name):
        def function(item, *_results):
            if name == step and item == 1:
                raise OSError(f"{name} failed")
            discarded.append(item) if name == "compute" else None  # which is done with it
            return item

        return function

    work = overlapped(range(5), read, failing("compute"), failing("write"), discarded.append)
    if step == "caller":
        assert next(work) == 0
        work.close()
    else:
        with pytest.raises(OSError, match="failed"):
            list(work)
    assert set(opened) - set(discarded) <= ({1} if step == "compute" else set())
