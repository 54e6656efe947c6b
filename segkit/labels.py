"""The meaning of mask values: class names, exclusive or overlapping classes, and ignored pixels.

Only this module handles the ignore index. Readers get the allowed mask values from it, padding gets the fill value,
and losses and metrics receive a `Target` that states which pixels are valid.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

assert_async = torch._assert_async  # pyright: ignore[reportPrivateImportUsage]  (does not synchronise with the device)

Mode = Literal["multiclass", "binary", "multilabel"]

BACKGROUND = "background"
# what the first class of a data set is called, in small letters alone, if its pixels belong to no object
BACKGROUND_NAMES = (
    *("background", "bg", "bkg", "backgr", "none", "void", "nothing", "empty"),
    *("unlabeled", "unlabelled", "nolabel", "unannotated", "notannotated"),
)
PADDING_UINT8 = 255
PADDING_WIDE = 65535
LARGEST_VALUE = 2**31 - 1  # masks are stored as uint8 or int32
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}
INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def means_background(name: str) -> bool:
    """Whether a class name means that a pixel belongs to no object: `Background`, `0_background`, `bg`, `no label`."""
    return re.sub(r"^\d+|[\W_]", "", name.lower()) in BACKGROUND_NAMES


def as_tensor(mask: Tensor | np.ndarray, device: torch.device | None = None) -> Tensor:
    """A mask as a tensor: a numpy array is moved to the device, in a type that torch computes with."""
    if isinstance(mask, Tensor):
        return mask
    array = np.asarray(mask)
    wide = array.dtype.kind == "u" and array.dtype != np.uint8
    # a copy is contiguous, writable and of native byte order
    return torch.from_numpy(np.array(array, dtype=np.int64 if wide else array.dtype.newbyteorder("="))).to(device)


def unequal(mask: Tensor, value: int) -> Tensor:
    """mask != value, bool. For uint8 masks on a CPU, writing bytes instead of bools is ten times faster."""
    if mask.dtype != torch.uint8 or torch.compiler.is_compiling():
        return mask != value
    return torch.ne(mask, value, out=torch.empty_like(mask)).view(torch.bool)


def is_any(mask: Tensor, values: Sequence[int]) -> Tensor:
    """Where a mask has one of these values, bool; one value after the other, so that it takes little memory."""
    found = mask == values[0]
    for value in values[1:]:
        found = found | (mask == value)
    return found


@dataclass(frozen=True)
class Target:
    """A batch of masks, prepared for losses and metrics. Exactly one of `index` and `onehot` is set.

    index: class numbers, integer [B, *S]; values at invalid pixels are undefined.
    onehot: bool [B, K, *S], or floating point for soft targets.
    valid: bool [B, *S] or [B, K, *S]; None if every pixel is valid.
    pixel_weight: floating point [B, *S] or [B, K, *S]; None for a weight of 1 everywhere.
    maps: maps of the target that some losses need, [B, ...] by name; see `segkit.losses.target_maps`.
    """

    index: Tensor | None = None
    onehot: Tensor | None = None
    valid: Tensor | None = None
    pixel_weight: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def valid_per_class(self) -> bool:
        """Whether `valid` has a class axis, [B, K, *S], so that a pixel can be valid for some classes only."""
        return self._has_channels(self.valid)

    @property
    def weight_per_class(self) -> bool:
        """Whether `pixel_weight` has a class axis, [B, 1 or K, *S]."""
        return self._has_channels(self.pixel_weight)

    def _has_channels(self, tensor: Tensor | None) -> bool:
        ndim = self.index.ndim + 1 if self.index is not None else self.onehot.ndim  # pyright: ignore
        return tensor is not None and tensor.ndim == ndim

    @property
    def extent(self) -> list[int]:
        """The batch size and the spatial size, [B, *S]."""
        if self.index is not None:
            return list(self.index.shape)
        assert self.onehot is not None
        return [self.onehot.shape[0], *self.onehot.shape[2:]]

    @property
    def valid_channels(self) -> Tensor | None:
        """`valid` with a class axis, [B, 1 or K, *S], which broadcasts against logits."""
        return self.valid if self.valid is None or self.valid_per_class else self.valid.unsqueeze(1)


@dataclass(frozen=True)
class Labels:
    """The classes of a dataset and the meaning of its mask values.

    names: class names, in the order of their numbers. `binary` takes two names, [negative, positive], and has one
        channel; `multiclass` and `multilabel` have one channel per name.
    mode: `multiclass` for mutually exclusive classes, `binary` for two of them with one channel, `multilabel` for
        classes that may overlap.
    ignore_index: mask value of pixels that are excluded from losses and scores; None if there is no such value.
    background: name of the background class, which is left out of means over classes. If it is one of `names`, all
        other classes are foreground; otherwise all classes are. By default it is `background`, or the first class if
        its name is another usual word for it, such as `Background`, `bg`, `_background_` or `unlabeled`; an empty text
        means that there is none.
    regions: only for `multilabel`: defines each class as a union of values of an integer mask, such as
        `{"whole": [1, 2], "core": [2]}`. Masks stay integer masks and are expanded on the device.

    Raises ValueError if names are not unique or do not fit the mode, if `ignore_index` is the number of a class, and
    for numbers that masks cannot hold.
    """

    names: Sequence[str]
    mode: Mode = "multiclass"
    ignore_index: int | None = None
    background: str = BACKGROUND
    regions: Mapping[str, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.names, (str, Mapping)) or not all(isinstance(name, str) for name in self.names):
            raise ValueError(f"expected a list of class names in the order of their numbers, got {self.names!r}")
        object.__setattr__(self, "names", tuple(self.names))
        if self.background == BACKGROUND and BACKGROUND not in self.names:
            first = next((name for name in self.names[:1] if means_background(name)), BACKGROUND)
            object.__setattr__(self, "background", first)
        elif self.background and self.background not in (BACKGROUND, *self.names):
            raise ValueError(
                f"expected background to be one of {', '.join(self.names)}, or an empty text for none, got "
                f"{self.background!r}"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"expected unique class names, got {list(self.names)}")
        if self.mode not in ("multiclass", "binary", "multilabel"):
            raise ValueError(f"expected mode multiclass, binary or multilabel, got {self.mode!r}")
        if self.mode == "binary" and len(self.names) != 2:
            raise ValueError(f"expected two names for binary labels, [negative, positive], got {list(self.names)}")
        if self.mode == "multiclass" and len(self.names) < 2:
            raise ValueError(f"expected at least two names for multiclass labels, got {list(self.names)}")
        if not self.names:
            raise ValueError("expected at least one class name, got none")
        if self.regions is not None:
            self._check_regions()
        self._check_values()
        if self.ignore_index in self.values:
            raise ValueError(
                f"ignore_index {self.ignore_index} is the number of the class {self._name_of(self.ignore_index)!r}; "
                "choose a value that is not a class, such as 255, or exclude the class from the scores instead"
            )

    def _check_regions(self) -> None:
        assert self.regions is not None
        if self.mode != "multilabel":
            raise ValueError(f"expected mode multilabel for regions, which may overlap, got {self.mode}")
        if tuple(self.regions) != self.names:
            raise ValueError(f"expected one region per name, {list(self.names)}, got {list(self.regions)}")
        empty = [name for name, values in self.regions.items() if not values]
        if empty:
            raise ValueError(f"expected at least one mask value per region, got none for {', '.join(empty)}")

    def _check_values(self) -> None:
        """Raise ValueError for numbers that a mask cannot hold, or that would be taken for padding."""
        values = self.values if self.regions is None else itertools.chain(*self.regions.values())
        numbers = [(value, 0) for value in values]
        numbers += [] if self.ignore_index is None else [(self.ignore_index, -LARGEST_VALUE)]
        for value, smallest in numbers:
            if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= LARGEST_VALUE:
                raise ValueError(f"expected mask values as integers from {smallest} to {LARGEST_VALUE}, got {value!r}")
        if self.ignore_index is None and self.padding_value in self.values:
            raise ValueError(
                f"the mask value {self.padding_value} of a class is also that of padding; set ignore_index to a value "
                f"that is no class, such as {LARGEST_VALUE}"
            )

    def _name_of(self, value: int | None) -> str:
        return str(value) if value is None or self.mode == "multilabel" else self.names[value]

    @property
    def channels(self) -> int:
        """The number of channels of the logits: 1 in binary mode, otherwise one per class."""
        return 1 if self.mode == "binary" else len(self.names)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The class name of each channel, which also names the rows of score tables."""
        return (self.names[1],) if self.mode == "binary" else tuple(self.names)

    @property
    def padding_value(self) -> int:
        """The mask value for padding: `ignore_index` if there is one, otherwise 255 (65535 above 255 classes)."""
        if self.ignore_index is not None:
            return self.ignore_index
        return PADDING_UINT8 if max(self.values) < PADDING_UINT8 else PADDING_WIDE

    @property
    def values(self) -> tuple[int, ...]:
        """The allowed mask values, without `ignore_index`."""
        if self.regions is not None:
            return tuple(sorted({0, *(value for union in self.regions.values() for value in union)}))
        return tuple(range(len(self.names))) if self.mode == "multiclass" else (0, 1)

    @property
    def has_mask_channels(self) -> bool:
        """Whether a mask has a channel axis: [K, *S] of 0, 1 and the padding value, not [*S] of class numbers."""
        return self.mode == "multilabel" and self.regions is None

    @property
    def mask_dtype(self) -> torch.dtype:
        """The integer type of stored masks: uint8 if it can represent all values and the padding value, else int32."""
        fits = 0 <= self.padding_value <= PADDING_UINT8 and max(self.values) <= PADDING_UINT8
        return torch.uint8 if fits else torch.int32

    def channel_numbers(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The class number of each channel, [K]."""
        first = 1 if self.mode == "binary" else 0
        return torch.arange(first, len(self.names), dtype=dtype, device=device)

    @property
    def background_channel(self) -> int | None:
        """The channel of the background class; None if there is no such channel."""
        exclusive = self.mode == "multiclass" and self.background in self.names
        return tuple(self.names).index(self.background) if exclusive else None

    @property
    def foreground(self) -> tuple[int, ...]:
        """The channels of the foreground classes."""
        return tuple(channel for channel in range(self.channels) if channel != self.background_channel)

    def target(
        self,
        mask: Tensor,
        spatial: int | None = None,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        check: bool = True,
    ) -> Target:
        """Convert a batch of masks to a `Target`, on the device of the mask and without synchronising with it.

        mask: class numbers, integer [B, *S]; or one-hot (bool or integers 0 and 1) or soft (floating point)
            [B, K, *S]. In binary mode [B, 1, *S] is accepted as well. In multiclass mode, pixels whose one-hot
            vector is all zeros are ignored.
        spatial: number of spatial axes, which distinguishes [B, *S] from [B, K, *S]. If it is None, integer masks are
            taken as class numbers, except for multilabel without regions, and all others as one-hot.
        pixel_weight: see `Target`.
        valid: bool [B, *S], or [B, K, *S] if some classes are not annotated everywhere ([B, K, 1, ...] for whole
            images). Pixels where it is False are ignored, like those that the mask itself ignores.
        check: if False, class numbers in multiclass mode are not checked here; the caller counts them and calls
            `assert_counted`.

        Raises ValueError for an unexpected shape or dtype. A value that is neither a class nor the padding value fails
        an assertion on the device.
        """
        target = self._target(mask, spatial, pixel_weight, check)
        return target if valid is None else self._restricted(target, valid)

    def _restricted(self, target: Target, valid: Tensor) -> Target:
        """The target with the pixels where `valid` is False ignored."""
        images, *spatial = target.extent
        per_class = [images, self.channels, *spatial]
        per_image = [images, self.channels, *(1 for _side in spatial)]
        if valid.dtype != torch.bool or list(valid.shape) not in ([images, *spatial], per_class, per_image):
            raise ValueError(
                f"expected valid as bool {[images, *spatial]}, {per_class} or {per_image}, "
                f"got {list(valid.shape)} of {valid.dtype}"
            )
        if valid.ndim == len(per_class):
            valid = valid.expand(per_class)
            mask_valid = target.valid_channels
        else:
            mask_valid = target.valid
            valid = valid.unsqueeze(1) if mask_valid is not None and target.valid_per_class else valid
        index = target.index
        if index is not None and valid.ndim == index.ndim:
            index = torch.where(valid, index, self.padding_value)
        return replace(target, index=index, valid=valid if mask_valid is None else valid & mask_valid)

    def _target(self, mask: Tensor, spatial: int | None, pixel_weight: Tensor | None, check: bool) -> Target:
        if self._is_index(mask, spatial):
            return self._index_target(mask, pixel_weight, check)
        if mask.ndim < 3 or mask.shape[1] != self.channels:
            raise ValueError(
                f"expected a mask [B, *S] of class numbers or [B, {self.channels}, *S] one-hot, "
                f"got {list(mask.shape)} of {mask.dtype}"
            )
        if self.mode == "binary" and not mask.is_floating_point():
            return self._index_target(mask[:, 0], pixel_weight, check)
        return self._onehot_target(mask, pixel_weight)

    def _is_index(self, mask: Tensor, spatial: int | None) -> bool:
        if spatial is not None:
            return mask.ndim == spatial + 1
        return mask.dtype in INDEX_DTYPES and not self.has_mask_channels

    def _index_target(self, mask: Tensor, pixel_weight: Tensor | None, check: bool) -> Target:
        if mask.dtype not in (*INDEX_DTYPES, torch.bool):
            raise ValueError(f"expected an integer mask of class numbers, got {mask.dtype} {list(mask.shape)}")
        if self.has_mask_channels:
            raise ValueError(
                f"expected a mask [B, {self.channels}, *S] of 0 and 1 for overlapping classes, got {list(mask.shape)}; "
                "set `regions` to define the classes as unions of mask values"
            )
        mask = self.comparable(mask)
        valid = unequal(mask, self.padding_value)
        if check or self.mode != "multiclass":
            self._assert_known(mask, valid)
        if self.regions is not None:
            return Target(onehot=self._expand_regions(mask), valid=valid, pixel_weight=pixel_weight)
        return Target(index=mask, valid=valid, pixel_weight=pixel_weight)

    def _assert_known(self, mask: Tensor, valid: Tensor) -> None:
        if self.regions is None:
            known = mask < len(self.names)
            known = known if mask.dtype == torch.uint8 else known & (mask >= 0)
        else:
            known = is_any(mask, self.values)
        # the padding value is not a class, so every pixel must be either of a known class or invalid
        assert_async((known == valid).all(), self._unknown_value)

    def assert_counted(self, counts: Tensor, valid: Tensor) -> None:
        """Assert on the device that every valid pixel belongs to a class, from pixel counts that exist already.

        It replaces the check of `target` in multiclass mode. counts: pixels of each class, [B, K]. valid: number of
        valid pixels, [B, K].
        """
        assert_async((counts.sum(1) == valid[:, 0]).all(), self._unknown_value)

    @property
    def _unknown_value(self) -> str:
        return f"a mask contains a value that is neither {self.values_text} nor {self.padding_value}"

    @property
    def values_text(self) -> str:
        """The allowed mask values as text, for messages."""
        return ", ".join(map(str, self.values)) if self.regions is not None else f"0 to {len(self.names) - 1}"

    def comparable(self, mask: Tensor) -> Tensor:
        """The mask in a type that can represent the padding value and every class.

        Otherwise comparisons are wrong, since torch wraps a number around to the narrow type of the tensor. Raises
        ValueError unless the mask is of integers or bool.
        """
        if mask.dtype == torch.bool:
            mask = mask.to(torch.uint8)
        elif mask.dtype not in INDEX_DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in INDEX_DTYPES)
            raise ValueError(f"expected a mask of bool, {names}, got {mask.dtype} {list(mask.shape)}")
        limits = torch.iinfo(mask.dtype)
        fits = limits.min <= self.padding_value <= limits.max and max(self.values) <= limits.max
        return mask if fits else mask.int()

    def _expand_regions(self, mask: Tensor) -> Tensor:
        assert self.regions is not None
        return torch.stack([is_any(mask, values) for values in self.regions.values()], dim=1)

    def _onehot_target(self, mask: Tensor, pixel_weight: Tensor | None) -> Target:
        if mask.is_floating_point():
            onehot, valid = mask, None
        else:
            mask = self.comparable(mask)
            onehot, valid = mask == 1, mask != self.padding_value
            assert_async(
                (onehot | (mask == 0) | ~valid).all(),
                f"a one-hot mask contains a value other than 0, 1 and {self.padding_value}",
            )
        if self.mode == "multiclass":
            classes = onehot.sum(1)
            if not mask.is_floating_point():
                assert_async((classes <= 1).all(), "a one-hot mask assigns more than one class to a pixel")
            valid = classes > 0 if valid is None else (classes > 0) & valid.all(1)
        return Target(onehot=onehot, valid=valid, pixel_weight=pixel_weight)

    def onehot(self, target: Target | Tensor) -> Tensor:
        """One-hot encoding [B, K, *S] of a target or an index mask; 0 at invalid pixels.

        The result is bool, or floating point for soft targets.
        """
        target = target if isinstance(target, Target) else self.target(target)
        onehot = target.onehot
        if onehot is None:
            assert target.index is not None
            shape = [1, -1] + [1] * (target.index.ndim - 1)
            numbers = self.channel_numbers(target.index.dtype, target.index.device)
            onehot = target.index.unsqueeze(1) == numbers.view(shape)
        valid = target.valid_channels
        return onehot if valid is None else torch.where(valid, onehot, torch.zeros_like(onehot))

    def class_planes(self, mask: np.ndarray) -> Iterator[np.ndarray]:
        """Yield one bool array [*S] per class from a stored mask, which is [*S], or [K, *S] with mask channels.

        Ignored pixels and padding are False for every class. In binary mode the classes are negative and positive.
        """
        if self.has_mask_channels:
            yield from (plane == 1 for plane in mask)
        elif self.regions is not None:
            yield from (np.isin(mask, list(union)) for union in self.regions.values())
        else:
            yield from (mask == value for value in self.values)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the classes in multiclass mode, otherwise a sigmoid per channel: [B, K, *S] -> [B, K, *S]."""
        return logits.softmax(1) if self.mode == "multiclass" else logits.sigmoid()

    def resample(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Resample logits to another size: [B, K, *S] -> [B, K, *size].

        The probabilities are interpolated linearly between pixel centres and converted back to logits. Interpolating
        logits directly would let a single very large logit dominate its neighbours.
        """
        if tuple(size) == tuple(logits.shape[2:]):
            return logits
        return self.logits(F.interpolate(self.probabilities(logits), size=tuple(size), mode=INTERPOLATION[len(size)]))

    def logits(self, probabilities: Tensor) -> Tensor:
        """Logits that have these probabilities, the inverse of `probabilities`: [B, K, *S] -> [B, K, *S].

        They are finite: probabilities of 0 and 1, to which float32 rounds large logits, are taken for the next numbers
        that differ from them; for binary and overlapping classes as far from 0 as from 1.
        """
        limits = torch.finfo(probabilities.dtype)
        if self.mode == "multiclass":
            return probabilities.clamp_min(limits.tiny).log()
        # two steps, because the exporter to ONNX fails at a clamp with two limits
        return probabilities.clamp_min(limits.eps).clamp_max(1 - limits.eps).logit()

    def decode(self, logits: Tensor, threshold: float | Sequence[float] = 0.5) -> Tensor:
        """Convert logits [B, K, *S] to a mask, in the form in which masks are stored.

        multiclass: the class with the largest logit, [B, *S]; `threshold` is not used. binary: 1 where the probability
        exceeds `threshold`, [B, *S]. multilabel: the same per class, [B, K, *S].

        threshold: one for all classes, or one per channel.

        Raises ValueError if a threshold is not between 0 and 1, or if their number is wrong.
        """
        thresholds = [threshold] if isinstance(threshold, (int, float)) else list(threshold)
        if not all(0 < value < 1 for value in thresholds) or len(thresholds) not in (1, self.channels):
            raise ValueError(f"expected a threshold between 0 and 1, or one per channel, got {threshold}")
        if self.mode == "multiclass":
            return logits.argmax(1).to(self.mask_dtype)
        cutoffs = [math.log(value / (1 - value)) for value in thresholds]
        if len(cutoffs) == 1:
            positive = (logits > cutoffs[0]).to(torch.uint8)
        else:
            above = [logits[:, number] > cutoff for number, cutoff in enumerate(cutoffs)]
            positive = torch.stack(above, 1).to(torch.uint8)
        return positive[:, 0] if self.mode == "binary" else positive
