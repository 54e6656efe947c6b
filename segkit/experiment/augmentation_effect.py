"""What augmentation does to the intensities of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from segkit.config import Config
from segkit.data.augment import NoAugment
from segkit.data.cases import spread
from segkit.data.sampling import Key
from segkit.experiment.build import Data, build_augment_from
from segkit.experiment.build_training import training_set

MAX_SATURATED = 0.25  # share of pixels that augmentation may set to the darkest or brightest value
FLAT = 1e-6  # standard deviation below which images are constant
MAX_MOVED = 1.5  # standard deviations by which augmentation may move the mean of an image, on average


@dataclass(frozen=True)
class AugmentedPixels:
    """The normalised pixels of one training case, in the same patches without and with augmentation.

    before, after: one array [C, N] per sample. Pixels from outside the image are left out.
    """

    case: str
    before: tuple[np.ndarray, ...]
    after: tuple[np.ndarray, ...]


def augmented_pixels(config: Config, data: Data, cases: int, samples: int) -> list[AugmentedPixels]:
    """The pixels of the first `samples` epochs of some training cases, evenly spaced in the training part."""
    plain = training_set(config, data, NoAugment())
    augmented = training_set(config, data, build_augment_from(config, data.labels))
    found = []
    for number in spread(range(len(plain)), cases):
        keys = [Key(epoch, number, number) for epoch in range(samples)]
        before, after = (tuple(_pixels(one[key], data) for key in keys) for one in (plain, augmented))
        found.append(AugmentedPixels(plain.cases[number].name, before, after))
    return found


def _pixels(sample: dict, data: Data) -> np.ndarray:
    image, mask = sample["image"].numpy(), sample["mask"].numpy()
    inside = mask != data.labels.padding_value
    inside = inside.any(0) if inside.ndim == image.ndim else inside
    return image[:, inside]


def augmentation_warnings(pixels: Sequence[AugmentedPixels]) -> list[str]:
    """Warnings about augmentation after which training images differ much from those of the evaluation."""
    pairs = [pair for case in pixels for pair in zip(case.before, case.after, strict=True) if all(map(np.size, pair))]
    if not pairs:
        return []
    if not all(np.isfinite(after).all() for _before, after in pairs):
        return ["augmentation makes pixels NaN or infinite; remove transforms of intensities one by one to find it"]
    deviation = np.mean([before.std() for before, _after in pairs])
    changes = [abs(after.mean() - before.mean()) for before, after in pairs]
    moved = np.mean(changes) / deviation if deviation > FLAT else 0.0
    saturated = np.mean([_saturated(after) - _saturated(before) for before, after in pairs])
    warnings = []
    if moved > MAX_MOVED:
        warnings.append(
            f"augmentation moves the mean intensity of the training images by {moved:.1f} standard deviations on "
            "average, while the evaluation sees them unchanged; use weaker transforms of brightness, contrast or gamma"
        )
    if saturated > MAX_SATURATED:
        warnings.append(
            f"augmentation sets {100 * saturated:.0f} % of the pixels to the darkest or brightest value, which removes "
            "their differences; use weaker transforms of brightness or contrast"
        )
    return warnings


def _saturated(values: np.ndarray) -> float:
    """The share of pixels at the lowest or highest value of their channel."""
    extreme = (values == values.min(1, keepdims=True)) | (values == values.max(1, keepdims=True))
    return float(extreme.mean())


def describe_effect(pixels: Sequence[AugmentedPixels]) -> str:
    """One line with the 0.5th, 50th and 99.5th percentiles of the normalised pixels, without and with augmentation."""
    before, after = (
        np.percentile(np.concatenate([values.ravel() for case in pixels for values in samples(case)]), (0.5, 50, 99.5))
        for samples in (attrgetter("before"), attrgetter("after"))
    )
    texts = [", ".join(f"{value:.3g}" for value in values) for values in (before, after)]
    return f"normalised intensities, percentiles 0.5, 50 and 99.5: {texts[0]}; augmented: {texts[1]}"
