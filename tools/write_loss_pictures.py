"""Write docs/reference/loss_pictures/NAME.png: what each loss punishes, on one made image with typical errors.

python tools/write_loss_pictures.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from segkit import Labels
from segkit.losses import LOSSES, build_loss

FOLDER = Path(__file__).parents[1] / "docs" / "reference" / "loss_pictures"
LABELS = Labels(["background", "structure"], mode="binary")
CONFIDENT = 4.0  # size of the logits: probabilities of 0.02 and 0.98
NEEDED = {"cldice": {"iterations": 4}, "lovasz_softmax": {"mode": "exact"}, "lovasz_hinge": {"mode": "exact"}}


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction, bool [H, W]: a vessel with a cut, a lesion without a part of its rim, a small lesion
    that is missed, a false positive at a boundary and one far from every structure."""
    rows, columns = np.mgrid[:72, :108]

    def disc(row: int, column: int, radius: float) -> np.ndarray:
        return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2

    vessel = abs(rows - 14 - 5 * np.sin(columns / 13)) <= 2.5
    lesion, small = disc(46, 28, 14), disc(58, 58, 3)
    reference = vessel | lesion | small
    cut = vessel & (abs(columns - 52) <= 2)
    rim = lesion & ~disc(46, 25, 13)
    bulge, distant = disc(34, 38, 4) & ~lesion, disc(60, 96, 3)
    return reference, (reference & ~cut & ~rim & ~small) | bulge | distant


def gradient(name: str, reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The gradient of a loss with respect to the logits, [H, W]."""
    logits = torch.from_numpy(CONFIDENT * (2.0 * prediction - 1))[None, None]
    if name.startswith("lovasz"):  # whose gradient depends on an order, which equal logits do not have
        logits += 0.2 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=logits.dtype)
    logits.requires_grad_()
    loss = build_loss({"name": name, **NEEDED.get(name, {})}, LABELS)
    loss(logits, torch.from_numpy(reference.astype(np.uint8))[None]).backward()
    assert logits.grad is not None
    return logits.grad[0, 0].numpy()


def draw(name: str, reference: np.ndarray, prediction: np.ndarray) -> None:
    """Reference, prediction, and the gradient: red where training lowers the logit, blue where it raises it."""
    slope = gradient(name, reference, prediction)
    largest = np.abs(slope).max()
    figure, axes = plt.subplots(1, 3, figsize=(8.1, 1.95), dpi=96, layout="constrained")
    axes[0].imshow(reference, cmap="gray_r", vmin=0, vmax=1.6)
    axes[1].imshow(prediction, cmap="gray_r", vmin=0, vmax=1.6)
    axes[2].imshow(slope, cmap="RdBu_r", vmin=-largest, vmax=largest)
    axes[2].contour(reference, levels=[0.5], colors="black", linewidths=0.5)
    for axis, title in zip(axes, ("reference", "prediction", f"gradient of {name}"), strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(FOLDER / f"{name}.png", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    reference, prediction = scene()
    for name in LOSSES:
        draw(name, reference, prediction)


if __name__ == "__main__":
    main()
