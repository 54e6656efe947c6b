"""Time and peak memory of a call, on the CPU and on a CUDA device."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

Call = Callable[[], Any]


class Meter(Protocol):
    """Measures calls on a device."""

    def milliseconds(self, call: Call, repeats: int, seconds: float) -> float:
        """The median time of a call. It is repeated so often, but at least once and not after so many seconds."""
        ...

    def peak_bytes(self, call: Call) -> int:
        """The largest number of bytes alive at the same time during a call, beyond those that existed before."""
        ...


def meter_of(device: torch.device) -> Meter:
    """The meter of a device."""
    return CudaMeter(device) if device.type == "cuda" else CpuMeter()


class CpuMeter:
    """Measures calls on the CPU, by the clock and by torch's profiler."""

    def milliseconds(self, call: Call, repeats: int, seconds: float) -> float:
        call()
        times: list[float] = []
        while len(times) < repeats and (not times or sum(times) < seconds):
            start = time.perf_counter()
            _result = call()
            times.append(time.perf_counter() - start)
            del _result
        return 1e3 * statistics.median(times)

    def peak_bytes(self, call: Call) -> int:
        return peak_bytes(call)


class CudaMeter:
    """Measures calls on a CUDA device, by its events and by the counters of torch's allocator.

    An event is recorded on the stream before and after a call, so that the time is that of the device, including gaps
    in which it waits for the host. Scratch memory that libraries allocate beside torch's allocator is not counted.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def milliseconds(self, call: Call, repeats: int, seconds: float) -> float:
        for _ in range(2):  # the first call loads kernels and fills the cache of the allocator
            call()
        torch.cuda.synchronize(self.device)
        times: list[float] = []
        while len(times) < repeats and (not times or sum(times) < 1e3 * seconds):
            times.append(self._milliseconds(call))
        return statistics.median(times)

    def _milliseconds(self, call: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(self.device)
        start.record(stream)
        _result = call()
        end.record(stream)
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end)

    def peak_bytes(self, call: Call) -> int:
        call()  # so that memory that is allocated once and kept does not count
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        _result = call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def peak_bytes(call: Call) -> int:
    """The largest number of bytes of CPU tensors alive at the same time during a call, beyond those that existed
    before.

    The profiler of torch reports each allocation and release of torch's CPU allocator in order, including temporaries
    inside an operation; the peak is the maximum of the running sum. Memory that an operation gets elsewhere, such as
    the scratch memory of sorting, and releases of earlier tensors are not counted.
    """
    call()  # so that memory that is allocated once and kept does not count
    with (
        silent_stderr(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        _result = call()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events: list[Any] = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Suppress what the profiler prints on standard error; exceptions pass."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
