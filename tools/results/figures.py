"""The figures of docs/results.md."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from results.comparison_tables import over_all_datasets
from results.data import DATASETS, NotMeasured, losses_of, means_of, measured, pairs_of, verdicts
from results.statistics import naive_verdicts
from segkit.report.comparison_figures import demsar_figure

COLUMNS = 3  # of the figure of single runs
BLUE_RED = LinearSegmentedColormap.from_list("winners", ["#b2182b", "#f7f7f7", "#2166ac"])


def draw_single_runs(path: Path) -> None:
    """For each pair of losses, the winners that single runs would have shown, and the verdict of all runs."""
    names = measured()
    rows = math.ceil(len(names) / COLUMNS)
    columns = math.ceil(len(names) / rows)
    size = (4.1 * columns + 1.2, 4.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        image = draw_winners(axis, name)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["the other\nwins in all", "both or\nnone", "the loss of the\nrow wins in all"])
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_winners(axis: Axes, name: str) -> AxesImage:
    """One data set. Rows and columns are losses, the best mean first."""
    samples, means = losses_of(name), means_of(name)
    order = [loss for loss in sorted(means, key=lambda loss: -means[loss]) if loss in samples]
    place = {loss: number for number, loss in enumerate(order)}
    balance, both = np.full((len(order), len(order)), np.nan), []
    for first, second in pairs_of(samples):
        winners = naive_verdicts(samples[first], samples[second])
        a, b = place[first], place[second]
        balance[a, b], balance[b, a] = winners.mean(), -winners.mean()
        both += [(a, b), (b, a)] if (winners > 0).any() and (winners < 0).any() else []
    image = axis.imshow(balance, cmap=BLUE_RED, vmin=-1, vmax=1)
    for a, b in both:
        axis.plot(b, a, marker="o", color="black", markersize=4)
    for result in verdicts(name, pairs_of(samples)):
        a, b = place[result["a"]], place[result["b"]]
        if result["verdict"] in ("better", "worse"):
            for row, column in ((a, b), (b, a)):
                axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black"))
    names = [loss.replace("lovasz_softmax after cross_entropy", "lovasz after cross-entropy") for loss in order]
    axis.set_xticks(range(len(order)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(order)), names, fontsize=7)
    axis.set_title(DATASETS[name], fontsize=10)
    return image


def draw_critical_difference(path: Path) -> None:
    across = over_all_datasets()
    if across["critical_difference"] is None:
        raise NotMeasured("a test over data sets")
    demsar_figure(across, 0.05).savefig(path, dpi=130)


FIGURES = {"single_runs.png": draw_single_runs, "critical_difference.png": draw_critical_difference}
