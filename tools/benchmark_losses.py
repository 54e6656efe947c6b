"""Speed, memory and accuracy of the losses compared with torch, MONAI, smp, kornia and nnU-Net: python
tools/benchmark.py losses.

Each library gets logits and labels in the form it expects: segkit uint8 class numbers, the others int64 ones, from
which they make one-hot masks themselves if they need them. A call computes the loss and its gradient with respect to
the logits. Every loss has its library's default options, unless these define another loss. The losses of a row are
therefore of the same kind, but not always of the same value: segkit pools a region loss over the batch, as smp does,
while MONAI and kornia average over images; the focal loss of smp uses a sigmoid per class, the others use a softmax.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from benchmark_tables import Sheet, target_text, write_page
from loss_peers import (
    LIBRARIES,
    ROWS,
    Call,
    Loss,
    Row,
    blobs,
    calls_of,
    gradient,
    ours,
    random_batch,
    rows,
    spatial_rows,
    with_channel,
    with_maps,
)
from meters import peak_bytes
from torch import Tensor

ABOUT = """\
A call computes a loss and its gradient with respect to the logits. All losses of all libraries take turns in every
round. The column `target` holds the goals of this project: the largest ratio to the fastest of the others, the largest
memory, the largest error. The losses of a row are of the same kind, but not always of the same value: each library has
its own defaults.\
"""
SECTIONS = {
    "speed": "Time",
    "memory": "Memory",
    "spatial": "Boundaries, centrelines and components",
    "accuracy": "Accuracy",
    "classes": "Many classes",
}
SHAPES = ("4x4x512x512", "2x21x512x512", "2x3x96x96x96")
SHARES = (0.1, 0.01, 0.001, 0.0001)
WARM_UP = 3  # rounds
MANY_CLASSES = "1x117x128x128x128"  # as TotalSegmentator trains
SLOW, SLOW_EVERY = 1.0, 5  # calls that take more seconds take part in every fifth round only

Entry = tuple[str, str]  # the names of a loss and of a library


def benchmark_losses(
    shapes: Sequence[str], rounds: int, threads: int, tables: Sequence[str], markdown: Path | None
) -> None:
    """Print the tables as they are computed, and write them to a Markdown file."""
    torch.set_num_threads(threads)
    makers: dict[str, Callable[[], Iterator[Sheet]]] = {
        "speed": lambda: (speed_sheet(shape, rounds) for shape in shapes),
        "memory": lambda: (memory_sheet(shape) for shape in shapes),
        "spatial": lambda: (spatial_sheet(shape, rounds) for shape in shapes if shape != "2x21x512x512"),
        "accuracy": accuracy_sheets,
        "classes": lambda: iter([many_classes_sheet(MANY_CLASSES, rounds)]),
    }
    sheets = itertools.chain.from_iterable(
        (replace(sheet, section=SECTIONS[name]) for sheet in makers[name]()) for name in tables
    )
    write_page("Benchmark: losses", "losses", ABOUT, sheets, threads, markdown)


def speed_sheet(shape: str, rounds: int) -> Sheet:
    """Milliseconds per call, the minimum over the rounds, for every row."""
    sheet = Sheet(
        f"time of loss and gradient, {shape}: minimum of {rounds} rounds, ms",
        ["loss", *LIBRARIES, "ratio", "medians", "target"],
        note="ratio: segkit over the fastest of the others; medians: the same of the medians of the rounds.\n"
        f"(n): n rounds only, since a call takes more than {SLOW:g} s.",
    )
    logits, mask = random_batch(shape)
    calls = {
        (name, library): call
        for name, row in rows(logits.ndim - 2).items()
        for library, call in calls_of(row, logits, mask).items()
    }
    seconds = in_turn(calls, rounds)
    for name, row in ROWS.items():
        taken = {library: seconds[name, library] for library in LIBRARIES if (name, library) in seconds}
        minima = {library: min(times) for library, times in taken.items()}
        medians = {library: statistics.median(times) for library, times in taken.items()}
        cells = {library: milliseconds(times, rounds) for library, times in taken.items()}
        ratios = [f"{over_best(numbers):.2f}" for numbers in (minima, medians)]
        sheet.rows.append([name, *(cells.get(library, "-") for library in LIBRARIES), *ratios, target_text(row.time)])
    return sheet


def milliseconds(seconds: Sequence[float], rounds: int) -> str:
    return f"{1e3 * min(seconds):.1f}" + (f" ({len(seconds)})" if len(seconds) < rounds else "")


def over_best(numbers: Mapping[str, float]) -> float:
    return numbers["segkit"] / min(number for library, number in numbers.items() if library != "segkit")


def in_turn(calls: Mapping[Entry, Call], rounds: int) -> dict[Entry, list[float]]:
    """Seconds per call. All calls take turns in each round, so that a change of the speed of the machine affects all of
    them.

    Losses take turns too, not only libraries: a machine may be slow for longer than all rounds of one loss take, and
    slower for arithmetic in the cache than for memory.
    """
    slow: set[Entry] = set()
    for _round in range(WARM_UP):
        slow |= {entry for entry, call in calls.items() if entry not in slow and seconds_of(call) > SLOW}
    seconds: dict[Entry, list[float]] = {entry: [] for entry in calls}
    for number in range(rounds):
        for entry, call in calls.items():
            if entry not in slow or number % SLOW_EVERY == 0:
                seconds[entry].append(seconds_of(call))
    return seconds


def seconds_of(call: Call) -> float:
    """The time of a call; its result is freed after the clock has stopped."""
    started = time.perf_counter()
    _result = call()
    return time.perf_counter() - started


def memory_sheet(shape: str) -> Sheet:
    """The peak memory of each call, in multiples of the size of the logits."""
    sheet = Sheet(
        f"peak memory of loss and gradient, {shape}: in sizes of the logits, the gradient (1) included",
        ["loss", *LIBRARIES, "target"],
        note="The first row checks the meter. The scratch memory of torch's sort is not counted for any library.",
    )
    logits, mask = random_batch(shape)
    size = logits.numel() * logits.element_size()
    measured = {"(logits * 2 is 1.00)": ({"torch": partial(torch.mul, logits, 2)}, None)}
    measured |= {name: (calls_of(row, logits, mask), row.memory) for name, row in rows(logits.ndim - 2).items()}
    for name, (calls, limit) in measured.items():
        peaks = {library: f"{peak_bytes(call) / size:.2f}" for library, call in calls.items()}
        sheet.rows.append([name, *(peaks.get(library, "-") for library in LIBRARIES), target_text(limit)])
    return sheet


def spatial_sheet(shape: str, rounds: int) -> Sheet:
    """Losses of boundaries, centrelines and components on smooth shapes, with the maps that the loader makes."""
    sheet = Sheet(
        f"losses of boundaries, centrelines and components, {shape}: minimum of {rounds} rounds, ms, and peak memory",
        ["loss", "segkit", "maps of one image", "MONAI", "memory", "target", "MONAI's memory"],
        note="segkit: loss and gradient, with maps that the loader has made; maps of one image: a worker's time for\n"
        "them. MONAI makes its distance maps inside of the loss. Memory in sizes of the logits, with the gradient and\n"
        "without the maps. All leave out the background.",
    )
    logits, mask = blobs(shape)
    calls = spatial_calls(logits, mask)
    size, seconds = logits.numel() * logits.element_size(), in_turn(calls, rounds)
    for name, row in spatial_rows().items():
        cells = {who: milliseconds(seconds[name, who], rounds) for who in ("segkit", "maps", *row.peers)}
        peaks = {who: f"{peak_bytes(calls[name, who]) / size:.2f}" for who in ("segkit", *row.peers)}
        times = [cells.get(who, "-") for who in ("segkit", "maps", "MONAI")]
        sheet.rows.append([name, *times, peaks["segkit"], target_text(row.memory), peaks.get("MONAI", "-")])
    return sheet


def spatial_calls(logits: Tensor, mask: Tensor) -> dict[Entry, Call]:
    """For every row: the loss of segkit, the making of its maps for one image, and the losses of others."""
    leaf, numbers, calls = logits.detach().requires_grad_(), mask.long(), {}
    for name, row in spatial_rows().items():
        calls[name, "segkit"], calls[name, "maps"] = with_maps(row, logits, mask)
        calls |= {(name, peer): partial(gradient, loss, leaf, numbers) for peer, loss in row.peers.items()}
    return calls


def many_classes_sheet(shape: str, rounds: int) -> Sheet:
    """Dice with cross-entropy for a volume of many classes: peak memory and time compared with MONAI and nnU-Net."""
    logits, mask = random_batch(shape)
    size = logits.numel() * logits.element_size()
    row = Row("dice_ce", peers={**rows(3, ["MONAI"])["dice_ce"].peers, **nnunet_loss()})
    calls: dict[Entry, Call] = {("dice_ce", library): call for library, call in calls_of(row, logits, mask).items()}
    seconds = in_turn(calls, rounds)
    sheet = Sheet(
        f"Dice with cross-entropy, {shape} ({size / 2**30:.2f} GiB of logits)",
        ["library", "peak memory, GiB", "in sizes of the logits", "seconds (minimum)", "of segkit's"],
        note=f"The gradient, one size of the logits, is included. Minimum of up to {rounds} rounds. TotalSegmentator\n"
        "trains with this size.",
    )
    fastest = min(seconds["dice_ce", "segkit"])
    for (name, library), call in calls.items():
        peak, least = peak_bytes(call), min(seconds[name, library])
        sheet.rows.append(
            [library, f"{peak / 2**30:.2f}", f"{peak / size:.2f}", f"{least:.2f}", f"{least / fastest:.2f}"]
        )
    return sheet


def nnunet_loss() -> dict[str, Loss]:
    """The loss of nnU-Net's default trainer, if nnunetv2 is installed: without background, mean over images."""
    try:
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss  # pyright: ignore[reportMissingImports]
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return {"nnU-Net": with_channel(DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss))}


def accuracy_sheets() -> Iterator[Sheet]:
    yield large_sheet(2048, 4096)
    yield shares_sheet(1024, 1024)


def large_sheet(height: int, width: int) -> Sheet:
    """Lovász-Softmax of two classes over many pixels, where differences of a float32 curve lose digits."""
    sheet = Sheet(
        f"Lovász-Softmax at {height * width / 1e6:.1f} million pixels, two classes of half each, against float64",
        ["loss", "value error", "gradient error", "target"],
        note="gradient error: L2 norm of the difference over the norm of the gradient.",
    )
    logits, mask = random_batch(f"1x2x{height}x{width}")
    exact = exact_lovasz(logits, mask)
    peers = rows(2)["lovasz_softmax exact"].peers
    contestants = {
        "segkit, mode exact": (ours({"name": "lovasz_softmax", "mode": "exact"}, 2), mask, 1e-5),
        "segkit, mode histogram": (ours("lovasz_softmax", 2), mask, None),
        "smp": (peers["smp"], mask.long(), None),
        "kornia": (peers["kornia"], mask.long(), None),
    }
    for name, (loss, labels, limit) in contestants.items():
        errors = [f"{error:.1e}" for error in errors_of(loss, logits, labels, exact)]
        sheet.rows.append([name, *errors, target_text(limit)])
    return sheet


def shares_sheet(height: int, width: int) -> Sheet:
    """Lovász-Softmax by histograms for rare classes: before training, and when nearly every pixel is right."""
    sheet = Sheet(
        f"Lovász-Softmax, mode histogram, at {height * width / 1e6:.1f} million pixels, against float64",
        ["share of class 1", "logits", "value", "value error", "target", "gradient error", "that of mode exact"],
        note="logits: normal, then with 6 more for the class of each pixel. Gradient error as above; that of\n"
        "mode exact is due to the order of pixels with equal errors in float32.",
    )
    generator = torch.Generator().manual_seed(0)
    for share in SHARES:
        noise = torch.randn(1, 2, height, width, generator=generator)
        mask = (torch.rand(1, height, width, generator=generator) < share).to(torch.uint8)
        shown = torch.stack([mask == 0, mask == 1], 1)
        for name, logits in {"random": noise, "trained": noise + 6 * shown}.items():
            exact = exact_lovasz(logits, mask)
            value, slope = errors_of(ours("lovasz_softmax", 2), logits, mask, exact)
            _value, sorting = errors_of(ours({"name": "lovasz_softmax", "mode": "exact"}, 2), logits, mask, exact)
            numbers = [f"{exact[0]:.6f}", f"{value:.1e}", target_text(1e-5), f"{slope:.1e}", f"{sorting:.1e}"]
            sheet.rows.append([f"{100 * share:g} %", name, *numbers])
    return sheet


def exact_lovasz(logits: Tensor, mask: Tensor) -> tuple[float, Tensor]:
    """Value and gradient of the Lovász-Softmax over a batch, mean over the present classes, in float64.

    In the order of decreasing errors, with I pixels of the class left and U in the union, the next pixel of the class
    adds 1 / U to the Jaccard loss, and one of another class adds I / (U (U - 1)), where U includes it; no difference is
    taken.
    """
    precise = logits.detach().double().requires_grad_()
    losses = []
    for p, shown in zip(precise.softmax(1).unbind(1), one_hot(mask, logits.shape[1]), strict=True):
        if shown.any():
            errors, order = (shown.double() - p).abs().flatten().sort(descending=True)
            inside = shown.flatten()[order]
            hits = inside.cumsum(0)
            intersection, union = hits[-1] - hits, hits[-1] + torch.arange(1, len(hits) + 1) - hits
            outside = intersection.double() / (union.double() * (union - 1)).clamp(min=1)
            losses.append((errors * torch.where(inside, 1 / union.double(), outside)).sum())
    value = torch.stack(losses).mean()
    return value.item(), torch.autograd.grad(value, precise)[0]


def one_hot(mask: Tensor, classes: int) -> list[Tensor]:
    return [mask == number for number in range(classes)]


def errors_of(loss: Loss, logits: Tensor, mask: Tensor, exact: tuple[float, Tensor]) -> tuple[float, float]:
    """The errors of value (absolute) and gradient (relative, L2 norm)."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, mask)
    (slope,) = torch.autograd.grad(value, logits)
    difference = slope.double() - exact[1]
    return abs(value.item() - exact[0]), (difference.norm() / exact[1].norm()).item()
