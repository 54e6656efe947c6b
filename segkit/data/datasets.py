"""Data sets: augmented patches for training, and whole images for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from segkit.data.augment import Augment, NoAugment
from segkit.data.case_store import CaseStore, PreparedCase
from segkit.data.cases import Case, RawCase, Source
from segkit.data.disk_cache import DamagedError
from segkit.data.preprocess import Preprocess, check_unit_range, linear, unscaled
from segkit.data.sampling import Balance, Key, cut, place_window, sample_seeds
from segkit.labels import Labels
from segkit.utils.errors import DataError

MakeMaps = Callable[[np.ndarray, Sequence[float]], Mapping[str, np.ndarray]]


class TrainingSet(Dataset):
    """Randomly placed and augmented patches, or whole images if `patch` is None. Indexed by `Key`.

    Each sample is a pure function of the case and of (seed, key.epoch, key.position). The number of workers and
    processes does not change it.

    patch: side lengths [D] of the patch, in pixels.
    foreground: the share of patches that are centred on a foreground pixel, 0 to 1, among those of cases that have one.
    locate: whether foreground is searched for even if no patch is centred on it, for `with_foreground`.
    margin: factor by which the augmented region is larger than the patch. The patch is cut from its centre.
    balance: `pixels` draws the foreground pixel from all foreground pixels; `classes` first draws a class and then one
        of its pixels.
    maps: makes the maps that the loss needs from the mask of a sample and its spacing; None if it needs none. Those of
        whole images without augmentation are kept in memory with the case.

    Raises ValueError if the number of sides of the patch differs from the number of image axes.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        store: CaseStore,
        preprocess: Preprocess,
        labels: Labels,
        augment: Augment,
        *,
        patch: Sequence[int] | None,
        foreground: float,
        margin: float,
        seed: int,
        balance: Balance = "pixels",
        locate: bool = False,
        maps: MakeMaps | None = None,
    ):
        if patch is not None and len(patch) != preprocess.dims:
            raise ValueError(f"expected sampling.patch with {preprocess.dims} sides, one per axis, got {list(patch)}")
        self.cases, self.store, self.preprocess, self.labels = cases, store, preprocess, labels
        self.augment = augment
        self.patch = tuple(patch) if patch is not None else None
        self.foreground = foreground
        self.balance: Balance = balance
        self.locate = locate or foreground > 0
        self.margin = 1.0 if isinstance(augment, NoAugment) else margin
        self.seed = seed
        self.has_weights = any(case.weight is not None for case in cases)
        self.prepared: dict[int, PreparedCase] = {}
        self.maps = maps
        self.keeps_maps = store.keep == "memory" and self.patch is None and isinstance(augment, NoAugment)
        self.kept_maps: dict[int, Mapping[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def prepare(self, track: Callable[[Iterable[int]], Iterable[int]] = iter) -> None:
        """Read all cases now, so that worker processes share them.

        track: wraps the iterable of case numbers, for a progress bar.
        """
        for number in track(range(len(self.cases))):
            self._prepared(number)

    def with_foreground(self, track: Callable[[Iterable[int]], Iterable[int]] = iter) -> list[int]:
        """The numbers of the cases that have foreground. Reads all cases that have not been read yet.

        track: wraps the iterable of case numbers, for a progress bar.
        """
        return [number for number in track(range(len(self.cases))) if len(self._prepared(number).foreground.places)]

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.store.with_repair(lambda: self._sample(key))

    def _sample(self, key: Key) -> dict[str, Any]:
        case, prepared = self.cases[key.case], self._prepared(key.case)
        placing, augmenting = sample_seeds(self.seed, key)
        try:
            image, mask, weight = self._augmented_patch(prepared, placing, augmenting)
        except DamagedError:
            self.prepared.pop(key.case, None)  # refers to an entry of the disk cache that is about to be made again
            raise
        return as_sample(image, mask, case, prepared.spacing, weight, self._maps(key.case, mask, prepared.spacing))

    def _maps(self, number: int, mask: np.ndarray, spacing: Sequence[float]) -> Mapping[str, np.ndarray]:
        """The maps that the loss needs of a sample."""
        if self.maps is None:
            return {}
        if number not in self.kept_maps:
            maps = self.maps(mask, spacing)
            if not self.keeps_maps:
                return maps
            self.kept_maps[number] = maps
        return self.kept_maps[number]

    def _augmented_patch(
        self, prepared: PreparedCase, placing: np.random.Generator, augmenting: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        size = prepared.image.shape[1:]
        patch = self.patch or size
        window = place_window(size, patch, self.margin, self._centre(prepared, placing), placing)
        where = (..., *window.slices)
        weight = None if prepared.weight is None else prepared.weight[where]
        if weight is None and self.has_weights:
            weight = np.ones([part.stop - part.start for part in window.slices], np.float32)
        image = prepared.image[where] if prepared.is_scaled else self._scaled(prepared, prepared.image[where])
        image, mask, weight = self.augment.apply(image, prepared.mask[where], weight, augmenting)
        image = self._normalised(prepared, image)
        return (
            cut(image, window.offset, patch, 0.0),
            cut(mask, window.offset, patch, self.labels.padding_value),
            None if weight is None else cut(weight, window.offset, patch, 0.0),
        )

    def _units(self, prepared: PreparedCase) -> tuple[np.ndarray, np.ndarray] | None:
        return self.preprocess.augmentation_units(self.augment.units, prepared.low, prepared.width)

    def _scaled(self, prepared: PreparedCase, image: np.ndarray) -> np.ndarray:
        """The image in the units that the augmentation expects."""
        shift, scale = prepared.shift, prepared.scale
        units = self._units(prepared)
        if units is None:
            return self.preprocess.normalise(image, shift, scale)
        origin, unit = units
        return linear(image, shift + origin * scale, unit * scale)

    def _normalised(self, prepared: PreparedCase, image: np.ndarray) -> np.ndarray:
        """The augmented image with normalised intensities."""
        units = self._units(prepared)
        if units is None:
            return image
        origin, unit = units
        is_kept = prepared.is_scaled and np.may_share_memory(image, prepared.image)
        return unscaled(image, origin, unit, in_place=not is_kept)

    def _centre(self, prepared: PreparedCase, placing: np.random.Generator) -> np.ndarray | None:
        on_foreground = placing.random() < self.foreground
        return prepared.foreground.draw(placing) if on_foreground else None

    def _prepared(self, number: int) -> PreparedCase:
        if number in self.prepared:
            return self.prepared[number]
        case = self.cases[number]
        prepared = self.store.prepared(case, self.preprocess, self.labels, locate=self.balance if self.locate else None)
        if self.store.keep == "memory":  # scaled once rather than for each sample
            prepared = replace(prepared, image=self._kept(prepared), is_scaled=True)
        if self.store.keep != "none":
            self.prepared[number] = prepared
        return prepared

    def _kept(self, prepared: PreparedCase) -> np.ndarray:
        """The scaled image in the memory layout that the augmentation works in. It cannot be written to."""
        image = self.augment.arranged(self._scaled(prepared, prepared.image[...]))
        image.flags.writeable = False
        return image


class EvaluationSet(Dataset):
    """Whole images as a predictor receives them, with masks on the original grid. Indexed by case number.

    prepare: what a predictor receives, from a case and its stored contents; a preprocessing for `prepared_image`.
    keep: whether samples stay in memory once they have been read.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        source: Source,
        prepare: Preprocess | Callable[[Case, RawCase], Any],
        *,
        keep: bool,
    ):
        self.cases, self.source, self.keep = cases, source, keep
        self.prepare = partial(prepared_image, prepare) if isinstance(prepare, Preprocess) else prepare
        self.samples: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def raw(self, number: int) -> RawCase:
        """The case as stored, before preprocessing."""
        return self.source.read(self.cases[number])

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number in self.samples:
            return self.samples[number]
        raw = self.raw(number)
        case = self.cases[number]
        assert raw.mask is not None
        sample = {"image": self.prepare(case, raw), **as_labelled(raw.mask, case, raw.spacing)}
        if self.keep:
            self.samples[number] = sample
        return sample


def prepared_image(preprocess: Preprocess, case: Case, raw: RawCase) -> torch.Tensor:
    """The image of a case as a network receives it, float32 [C, *S]. Raises DataError, see `network_image`."""
    image = network_image(raw, preprocess, case_and_file(case))
    return torch.from_numpy(np.require(image, np.float32, ["C", "W"]))


def case_and_file(case: Case) -> str:
    """A case and its first file, for errors."""
    return f"case {case.name}" + (f", file {case.images[0]}" if case.images else "")


def network_image(raw: RawCase, preprocess: Preprocess, where: str) -> np.ndarray:
    """The image as the network receives it, [C, *S]: resampled to the target spacing and normalised.

    where: names the image in the DataError for other channels or axes than in training.
    """
    check_axes(raw.image.shape, preprocess, where)
    if preprocess.intensity == "encoder":
        check_unit_range(raw.image, where, "give images as those of the training")
    image = preprocess.resample(raw).image
    return preprocess.normalise(image, *preprocess.intensity_map(image))


def check_axes(shape: Sequence[int], preprocess: Preprocess, where: str) -> None:
    """Raise DataError if an image [C, *S] has other channels or axes than the images of the training."""
    channels, dims = shape[0], len(shape) - 1
    if (channels, dims) == (preprocess.channels, preprocess.dims):
        return
    if dims != preprocess.dims:
        advice = "give the network 2D images" if preprocess.dims == 2 else "give the network volumes"
    elif (channels, preprocess.channels) == (1, 3):
        advice = "save it in colour, if the images of the training were"
    elif (channels, preprocess.channels) == (3, 1):
        advice = "save it in grey, if the images of the training were"
    else:
        advice = "give all channels of a case, in one file, as files `case_0000`, `case_0001`, or in a table"
    raise DataError(
        f"{where}: expected an image with {preprocess.channels} channels and {preprocess.dims} spatial axes, as in "
        f"training, got {channels} and {dims}; {advice}"
    )


def as_sample(
    image: np.ndarray,
    mask: np.ndarray,
    case: Case,
    spacing: Sequence[float],
    weight: np.ndarray | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """A sample: image float32 [C, *S], integer mask [*S] or [K, *S], names of case and group, spacing [D], and, if
    there are any, the weights of pixels, float32 [*S], and the maps that the loss needs."""
    needed = {"maps": {name: torch.from_numpy(array) for name, array in maps.items()}} if maps else {}
    weights = {} if weight is None else {"weight": torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float32))}
    return {
        **weights,
        **needed,
        "image": torch.from_numpy(np.require(image, np.float32, ["C", "W"])),
        **as_labelled(mask, case, spacing),
    }


def as_labelled(mask: np.ndarray, case: Case, spacing: Sequence[float]) -> dict[str, Any]:
    """A sample without its image."""
    return {
        "mask": torch.from_numpy(np.ascontiguousarray(mask)),
        "case": case.name,
        "group": case.group,
        "spacing": list(spacing),
    }
