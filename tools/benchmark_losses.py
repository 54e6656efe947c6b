"""Speed, memory and accuracy of the losses beside torch, MONAI, smp and kornia: python tools/benchmark.py losses.

Every library gets the logits and labels as it takes them: segkit uint8 class numbers, the others int64 ones, of which
they make one-hot masks themselves if they need them. A call is the loss and its gradient with respect to the logits.
Every loss has the options that its library has as defaults, unless these mean another loss. What a row compares is then
of one kind, not always of one value: segkit pools a region loss over the batch, as smp does, while MONAI and kornia
average over images; smp's focal loss is a sigmoid for each class, that of the others a softmax.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kornia.losses
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from benchmark_tables import Sheet, as_markdown, as_rich, asked, circumstances
from monai.losses.dice import DiceCELoss, DiceLoss, GeneralizedDiceLoss
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from rich.console import Console
from torch import Tensor

from segkit import Labels
from segkit.losses import build_loss

ABOUT = """\
A call is a loss and its gradient with respect to the logits. All losses of all libraries take part in every round, in
turn. A column
`asked` is what this project set itself: the largest ratio to the fastest of the others, the most memory, the largest
error. Values of one row are of one kind of loss, not always the same number: each library has its own defaults.\
"""
SHAPES = ("4x4x512x512", "2x21x512x512", "2x3x96x96x96")
LIBRARIES = ("segkit", "torch", "MONAI", "smp", "kornia")
SHARES = (0.1, 0.01, 0.001, 0.0001)
WARM_UP = 3  # rounds
SLOW, SLOW_EVERY = 1.0, 5  # contestants that need more seconds a call take part in every fifth round only

Loss = Callable[[Tensor, Tensor], Tensor]
Call = Callable[[], Any]
Entry = tuple[str, str]  # the names of a loss and of a library


@dataclass(frozen=True)
class Row:
    """A loss of segkit, by what builds it, the same of others, and what is asked for at most: of the time over that of
    the fastest of the others, and of the peak memory over that of the logits."""

    spec: str | dict[str, Any]
    peers: Mapping[str, Loss]
    time: float | None = None
    memory: float | None = 2.0


def with_channel(loss: Loss) -> Loss:
    """MONAI wants its class numbers with a channel."""
    return lambda logits, mask: loss(logits, mask.unsqueeze(1))


KORNIA_FOCAL = partial(kornia.losses.focal_loss, alpha=None, gamma=2.0, reduction="mean")
KORNIA_DICE = partial(kornia.losses.dice_loss, average="macro")
KORNIA_TVERSKY = partial(kornia.losses.tversky_loss, alpha=0.5, beta=0.5)
KORNIA_LOVASZ = kornia.losses.lovasz_softmax_loss
ONLY_2D: set[Loss] = {KORNIA_DICE, KORNIA_TVERSKY, KORNIA_LOVASZ}

MONAI_OPTIONS: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
TORCH: dict[str, Loss] = {"torch": F.cross_entropy}
LOVASZ: dict[str, Loss] = {"smp": smp.LovaszLoss("multiclass"), "kornia": KORNIA_LOVASZ}

ROWS = {
    "cross_entropy": Row("cross_entropy", TORCH, 1.15),
    "focal": Row(
        "focal",
        {
            "MONAI": with_channel(FocalLoss(use_softmax=True, to_onehot_y=True)),
            "smp": smp.FocalLoss("multiclass"),
            "kornia": KORNIA_FOCAL,
        },
        0.8,
    ),
    "dice": Row(
        "dice",
        {
            "MONAI": with_channel(DiceLoss(**MONAI_OPTIONS)),
            "smp": smp.DiceLoss("multiclass"),
            "kornia": KORNIA_DICE,
        },
        0.9,
    ),
    "jaccard": Row(
        "jaccard",
        {
            "MONAI": with_channel(DiceLoss(jaccard=True, **MONAI_OPTIONS)),
            "smp": smp.JaccardLoss("multiclass"),
        },
        0.9,
    ),
    "tversky": Row(
        "tversky",
        {
            "MONAI": with_channel(TverskyLoss(**MONAI_OPTIONS)),
            "smp": smp.TverskyLoss("multiclass"),
            "kornia": KORNIA_TVERSKY,
        },
        0.9,
    ),
    "generalized_dice": Row("generalized_dice", {"MONAI": with_channel(GeneralizedDiceLoss(**MONAI_OPTIONS))}),
    "dice_ce": Row("dice_ce", {"MONAI": with_channel(DiceCELoss(**MONAI_OPTIONS))}, 0.6),
    "lovasz_softmax histogram": Row({"name": "lovasz_softmax", "mode": "histogram"}, LOVASZ, 0.33, None),
    "lovasz_softmax exact": Row({"name": "lovasz_softmax", "mode": "exact"}, LOVASZ, 0.8, None),
    "poly_cross_entropy": Row("poly_cross_entropy", TORCH),
    "topk_cross_entropy": Row("topk_cross_entropy", TORCH),
}


def benchmark_losses(
    shapes: Sequence[str], rounds: int, threads: int, tables: Sequence[str], markdown: Path | None
) -> None:
    """Print the tables as they come, and write them to a file of markdown."""
    torch.set_num_threads(threads)
    makers: dict[str, Callable[[], Iterator[Sheet]]] = {
        "speed": lambda: (speed_sheet(shape, rounds) for shape in shapes),
        "memory": lambda: (memory_sheet(shape) for shape in shapes),
        "accuracy": accuracy_sheets,
    }
    console = Console(width=120)
    written = [circumstances(threads), ABOUT]
    console.print(*written, sep="\n", highlight=False)
    for name in tables:
        for sheet in makers[name]():
            console.print("", sheet.title, as_rich(sheet), sheet.note, sep="\n", highlight=False)
            written.append(as_markdown(sheet))
            if markdown is not None:
                markdown.write_text("\n\n".join(written) + "\n", encoding="utf-8")


def speed_sheet(shape: str, rounds: int) -> Sheet:
    """Milliseconds of each call, the least over the rounds, for every row."""
    sheet = Sheet(
        f"time of loss and gradient, {shape}: minimum of {rounds} rounds, ms",
        ["loss", *LIBRARIES, "ratio", "medians", "asked"],
        note="ratio: segkit over the fastest of the others; medians: the same of the medians of the rounds.\n"
        f"(n): n rounds only, since a call takes more than {SLOW:g} s.",
    )
    logits, mask = random_batch(shape)
    calls = {
        (name, library): call for name, row in ROWS.items() for library, call in calls_of(row, logits, mask).items()
    }
    seconds = in_turn(calls, rounds)
    for name, row in ROWS.items():
        taken = {library: seconds[name, library] for library in LIBRARIES if (name, library) in seconds}
        minima = {library: min(times) for library, times in taken.items()}
        medians = {library: statistics.median(times) for library, times in taken.items()}
        cells = {library: milliseconds(times, rounds) for library, times in taken.items()}
        ratios = [f"{over_best(numbers):.2f}" for numbers in (minima, medians)]
        sheet.rows.append([name, *(cells.get(library, "-") for library in LIBRARIES), *ratios, asked(row.time)])
    return sheet


def milliseconds(seconds: Sequence[float], rounds: int) -> str:
    return f"{1e3 * min(seconds):.1f}" + (f" ({len(seconds)})" if len(seconds) < rounds else "")


def over_best(numbers: Mapping[str, float]) -> float:
    return numbers["segkit"] / min(number for library, number in numbers.items() if library != "segkit")


def random_batch(shape: str) -> tuple[Tensor, Tensor]:
    """Normal logits of a shape such as 2x3x64x64, and uint8 labels."""
    images, channels, *space = map(int, shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, channels, *space, generator=generator)
    return logits, torch.randint(0, channels, (images, *space), generator=generator, dtype=torch.uint8)


def calls_of(row: Row, logits: Tensor, mask: Tensor) -> dict[str, Call]:
    """A call for each library that has the loss, for so many dimensions."""
    logits = logits.detach().requires_grad_()
    peers = {name: loss for name, loss in row.peers.items() if logits.ndim == 4 or loss not in ONLY_2D}
    numbers = mask.long()
    return {
        "segkit": partial(gradient, ours(row.spec, logits.shape[1]), logits, mask),
        **{name: partial(gradient, loss, logits, numbers) for name, loss in peers.items()},
    }


def ours(spec: str | dict[str, Any], channels: int) -> Loss:
    return build_loss(spec, Labels(["background", *(f"class {number}" for number in range(1, channels))]))


def gradient(loss: Loss, logits: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """What a training step asks of a loss: the gradient of the logits, which is handed on and not kept."""
    return torch.autograd.grad(loss(logits, mask), logits)


def in_turn(calls: Mapping[Entry, Call], rounds: int) -> dict[Entry, list[float]]:
    """Seconds of each call, all in turn in each round, so that a machine that changes its speed changes it for all.

    Losses take turns too, not libraries alone: a machine may be slow for longer than all rounds of one loss take, and
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
    """The time of a call; what it returns is freed after the clock has stopped."""
    started = time.perf_counter()
    _result = call()
    return time.perf_counter() - started


def memory_sheet(shape: str) -> Sheet:
    """The peaks of the memory of each call, in bytes of the logits."""
    sheet = Sheet(
        f"peak memory of loss and gradient, {shape}: in sizes of the logits, the gradient (1) included",
        ["loss", *LIBRARIES, "asked"],
        note="The first row checks the meter. What torch's sort takes as scratch is not counted, for no library.",
    )
    logits, mask = random_batch(shape)
    size = logits.numel() * logits.element_size()
    measured = {"(logits * 2 is 1.00)": ({"torch": partial(torch.mul, logits, 2)}, None)}
    measured |= {name: (calls_of(row, logits, mask), row.memory) for name, row in ROWS.items()}
    for name, (calls, limit) in measured.items():
        peaks = {library: f"{peak_bytes(call) / size:.2f}" for library, call in calls.items()}
        sheet.rows.append([name, *(peaks.get(library, "-") for library in LIBRARIES), asked(limit)])
    return sheet


def peak_bytes(call: Call) -> int:
    """The most bytes of CPU tensors that live at once during a call, beyond those that were there before.

    Torch's profiler reports each allocation and each release of torch's allocator for the CPU, those of temporaries
    inside an operation too, in the order in which they happen; the peak is the maximum of the running sum. Not counted
    is what an operation gets from elsewhere, as sorting does for scratch, and the release of what was there before.
    """
    call()  # so that what is made once, and kept, does not count
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
    """Without what the profiler's library says on the standard error; exceptions pass."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def accuracy_sheets() -> Iterator[Sheet]:
    yield large_sheet(2048, 4096)
    yield shares_sheet(1024, 1024)


def large_sheet(height: int, width: int) -> Sheet:
    """Lovász-Softmax of two classes over many pixels, where differences of a float32 curve lose digits."""
    sheet = Sheet(
        f"Lovász-Softmax at {height * width / 1e6:.1f} million pixels, two classes of half each, against float64",
        ["loss", "value error", "gradient error", "asked"],
        note="gradient error: L2 norm of the difference over the norm of the gradient.",
    )
    logits, mask = random_batch(f"1x2x{height}x{width}")
    exact = exact_lovasz(logits, mask)
    contestants = {
        "segkit, mode exact": (ours({"name": "lovasz_softmax", "mode": "exact"}, 2), mask, 1e-5),
        "segkit, mode histogram": (ours("lovasz_softmax", 2), mask, None),
        "smp": (LOVASZ["smp"], mask.long(), None),
        "kornia": (LOVASZ["kornia"], mask.long(), None),
    }
    for name, (loss, labels, limit) in contestants.items():
        errors = [f"{error:.1e}" for error in errors_of(loss, logits, labels, exact)]
        sheet.rows.append([name, *errors, asked(limit)])
    return sheet


def shares_sheet(height: int, width: int) -> Sheet:
    """Lovász-Softmax by histograms for rare classes: before training, and when nearly every pixel is right."""
    sheet = Sheet(
        f"Lovász-Softmax, mode histogram, at {height * width / 1e6:.1f} million pixels, against float64",
        ["share of class 1", "logits", "value", "value error", "asked", "gradient error", "that of mode exact"],
        note="logits: normal, then with 6 more for the class of each pixel. Gradient error as above; what\n"
        "mode exact has of it is the order of pixels whose errors are alike in float32.",
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
            numbers = [f"{exact[0]:.6f}", f"{value:.1e}", asked(1e-5), f"{slope:.1e}", f"{sorting:.1e}"]
            sheet.rows.append([f"{100 * share:g} %", name, *numbers])
    return sheet


def exact_lovasz(logits: Tensor, mask: Tensor) -> tuple[float, Tensor]:
    """Value and gradient of the Lovász-Softmax over a batch, mean over the present classes, in float64.

    After pixels in the order of falling errors, with I of the class left and U in the union, the next one of the class
    adds 1 / U to the Jaccard loss, and one of another class I / (U (U - 1)), U counted with it; no difference is taken.
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
    """How far value and gradient are from the exact ones: absolute, and relative in the L2 norm."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, mask)
    (slope,) = torch.autograd.grad(value, logits)
    difference = slope.double() - exact[1]
    return abs(value.item() - exact[0]), (difference.norm() / exact[1].norm()).item()
