"""What a mask means: class names, exclusive or overlapping classes, and which pixels count.

This module is the only owner of the ignore value. Readers ask it which values are legal, padding asks it
what to fill with, and losses and metrics receive a `Target` that already says which pixels are valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

assert_async = torch._assert_async  # pyright: ignore[reportPrivateImportUsage]  (the one check that never waits)

Mode = Literal["multiclass", "binary", "multilabel"]

VOID_UINT8 = 255
VOID_WIDE = 65535
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}
INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def unequal(mask: Tensor, value: int) -> Tensor:
    """mask != value, bool; through bytes, which on a CPU takes a tenth of the time that a bool result does."""
    if mask.dtype != torch.uint8 or torch.compiler.is_compiling():
        return mask != value
    return torch.ne(mask, value, out=torch.empty_like(mask)).view(torch.bool)


@dataclass(frozen=True)
class Target:
    """A batch of masks, ready for losses and metrics. Exactly one of `index` and `onehot` is set.

    index: integer [B, *S], class numbers; values under invalid pixels mean nothing.
    onehot: bool, or floating for soft targets, [B, K, *S].
    valid: bool [B, *S] or [B, K, *S]; None means that every pixel counts.
    pixel_weight: floating [B, *S] or [B, K, *S]; None means 1.
    """

    index: Tensor | None = None
    onehot: Tensor | None = None
    valid: Tensor | None = None
    pixel_weight: Tensor | None = None

    @property
    def valid_per_class(self) -> bool:
        """Whether `valid` is [B, K, *S]: pixels that count for some classes only."""
        return self._has_channels(self.valid)

    @property
    def weight_per_class(self) -> bool:
        """Whether `pixel_weight` is [B, 1 or K, *S]."""
        return self._has_channels(self.pixel_weight)

    def _has_channels(self, given: Tensor | None) -> bool:
        ndim = self.index.ndim + 1 if self.index is not None else self.onehot.ndim  # pyright: ignore
        return given is not None and given.ndim == ndim

    @property
    def extent(self) -> list[int]:
        """[B, *S]."""
        if self.index is not None:
            return list(self.index.shape)
        assert self.onehot is not None
        return [self.onehot.shape[0], *self.onehot.shape[2:]]

    @property
    def valid_channels(self) -> Tensor | None:
        """`valid` with a channel axis, [B, 1 or K, *S], to broadcast against logits."""
        return self.valid if self.valid is None or self.valid_per_class else self.valid.unsqueeze(1)


@dataclass(frozen=True)
class Labels:
    """The classes of a data set and the meaning of the numbers in its masks.

    names: the class names, in the order of their numbers. `binary` takes two, [negative, positive], and has
        one channel; `multiclass` and `multilabel` have one channel a name.
    mode: `multiclass` for classes that exclude each other, `multilabel` for classes that may overlap.
    ignore_index: the mask value of pixels that count in neither loss nor score; None if there is none.
    background: the name of the background class, if one of the names is it. All other classes are foreground.
    regions: for `multilabel` only: each name as a union of the values of an integer mask,
        `{"whole": [1, 2], "core": [2]}`; the integer mask is kept and expanded on the device.

    Raises ValueError if the names repeat, do not fit the mode, or if `ignore_index` is the number of a class.
    """

    names: Sequence[str]
    mode: Mode = "multiclass"
    ignore_index: int | None = None
    background: str = "background"
    regions: Mapping[str, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"expected class names that differ, got {list(self.names)}")
        if self.mode not in ("multiclass", "binary", "multilabel"):
            raise ValueError(f"expected mode multiclass, binary or multilabel, got {self.mode!r}")
        if self.mode == "binary" and len(self.names) != 2:
            raise ValueError(f"binary labels have two names, [negative, positive], got {list(self.names)}")
        if self.mode == "multiclass" and len(self.names) < 2:
            raise ValueError(f"multiclass labels have at least two names, got {list(self.names)}")
        if not self.names:
            raise ValueError("expected at least one class name, got none")
        if self.regions is not None:
            self._check_regions()
        if self.ignore_index in self.values:
            raise ValueError(
                f"ignore_index {self.ignore_index} is the number of the class {self._name_of(self.ignore_index)!r}; "
                "choose a number that is no class (255), or leave the class out of the scores instead"
            )

    def _check_regions(self) -> None:
        assert self.regions is not None
        if self.mode != "multilabel":
            raise ValueError(f"regions overlap, so they need mode multilabel, got {self.mode}")
        if tuple(self.regions) != self.names:
            raise ValueError(f"expected one region for each of {list(self.names)}, got {list(self.regions)}")
        empty = [name for name, values in self.regions.items() if not values]
        if empty:
            raise ValueError(f"expected at least one mask value in each region, got none for {', '.join(empty)}")

    def _name_of(self, value: int | None) -> str:
        return str(value) if value is None or self.mode == "multilabel" else self.names[value]

    @property
    def channels(self) -> int:
        """The number of channels of the logits: 1 in binary mode, else one a class."""
        return 1 if self.mode == "binary" else len(self.names)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The name that each channel, and so each row of a score table, stands for."""
        return (self.names[1],) if self.mode == "binary" else tuple(self.names)

    @property
    def padding_value(self) -> int:
        """The padding value: `ignore_index`, or 255 (65535 above 255 classes) where the data ignore nothing."""
        if self.ignore_index is not None:
            return self.ignore_index
        return VOID_UINT8 if max(self.values) < VOID_UINT8 else VOID_WIDE

    @property
    def values(self) -> tuple[int, ...]:
        """The mask values that mean something, `ignore_index` apart."""
        if self.regions is not None:
            return tuple(sorted({0, *(value for union in self.regions.values() for value in union)}))
        return tuple(range(len(self.names))) if self.mode == "multiclass" else (0, 1)

    @property
    def has_mask_channels(self) -> bool:
        """Whether a mask is [K, *S] of 0, 1 and the padding value rather than [*S] of class numbers."""
        return self.mode == "multilabel" and self.regions is None

    @property
    def mask_dtype(self) -> torch.dtype:
        """The smallest integer type that holds every value and the padding value."""
        fits = 0 <= self.padding_value <= VOID_UINT8 and max(self.values) <= VOID_UINT8
        return torch.uint8 if fits else torch.int32

    def channel_numbers(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The class number that each channel of an index mask stands for, [K]."""
        first = 1 if self.mode == "binary" else 0
        return torch.arange(first, len(self.names), dtype=dtype, device=device)

    @property
    def background_channel(self) -> int | None:
        """The channel of the background class, None where there is none."""
        exclusive = self.mode == "multiclass" and self.background in self.names
        return tuple(self.names).index(self.background) if exclusive else None

    @property
    def foreground(self) -> tuple[int, ...]:
        """The channels that are not background."""
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
        """Say which pixels of a batch of masks count, on the mask's own device and without reading it back.

        mask: integer class numbers [B, *S], or one-hot (bool, 0 and 1) or soft (floating) [B, K, *S]; in binary
            mode [B, 1, *S] is accepted for [B, *S]. In multiclass a one-hot column of zeros is ignored.
        spatial: the number of spatial axes, which tells [B, *S] from [B, K, *S]. Without it integer masks are
            class numbers, except for overlapping classes, and others are one-hot.
        valid: bool [B, *S], or [B, K, *S] for classes that were not annotated everywhere ([B, K, 1, ...] for whole
            images); what it leaves out counts no more than what the mask ignores.
        check: false leaves the check of exclusive class numbers to a caller that counts them, see `assert_counted`.

        Raises ValueError for a shape that fits neither. A value that is neither a class nor the padding value fails an
        assertion on the device.
        """
        target = self._target(mask, spatial, pixel_weight, check)
        return target if valid is None else self._restricted(target, valid)

    def _restricted(self, target: Target, valid: Tensor) -> Target:
        """The target without the pixels that `valid` leaves out."""
        images, *spatial = target.extent
        per_class = [images, self.channels, *spatial]
        of_images = [images, self.channels, *(1 for _side in spatial)]
        if valid.dtype != torch.bool or list(valid.shape) not in ([images, *spatial], per_class, of_images):
            raise ValueError(
                f"expected valid as bool {[images, *spatial]}, {per_class} or {of_images}, "
                f"got {list(valid.shape)} of {valid.dtype}"
            )
        if valid.ndim == len(per_class):
            valid = valid.expand(per_class)
            known = target.valid_channels
        else:
            known = target.valid
            valid = valid.unsqueeze(1) if known is not None and target.valid_per_class else valid
        index = target.index
        if index is not None and valid.ndim == index.ndim:
            index = torch.where(valid, index, self.padding_value)
        return replace(target, index=index, valid=valid if known is None else valid & known)

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
                f"overlapping classes need a mask [B, {self.channels}, *S] of 0 and 1, got {list(mask.shape)}; "
                "to make them from class numbers, give `regions`"
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
            known = torch.stack([mask == value for value in self.values]).any(0)
        # the padding value is no class, so a pixel is either known or not valid
        assert_async((known == valid).all(), self._unknown_value)

    def assert_counted(self, counts: Tensor, valid: Tensor) -> None:
        """What `target` asserts of class numbers in multiclass, from the pixels of each class [B, K] and the valid
        pixels [B, K] that were counted anyway: every valid pixel must be one of a class."""
        assert_async((counts.sum(1) == valid[:, 0]).all(), self._unknown_value)

    @property
    def _unknown_value(self) -> str:
        return f"a mask holds a value that is neither {self.values_in_words} nor {self.padding_value}"

    @property
    def values_in_words(self) -> str:
        """The mask values that mean something, for messages."""
        return ", ".join(map(str, self.values)) if self.regions is not None else f"0 to {len(self.names) - 1}"

    def comparable(self, mask: Tensor) -> Tensor:
        """A mask in a type that can hold the padding value and every class: torch wraps a number to the tensor's
        narrow type."""
        if mask.dtype == torch.bool:
            mask = mask.to(torch.uint8)
        limits = torch.iinfo(mask.dtype)
        fits = limits.min <= self.padding_value <= limits.max and max(self.values) <= limits.max
        return mask if fits else mask.int()

    def _expand_regions(self, mask: Tensor) -> Tensor:
        assert self.regions is not None
        unions = [torch.stack([mask == value for value in values]).any(0) for values in self.regions.values()]
        return torch.stack(unions, dim=1)

    def _onehot_target(self, mask: Tensor, pixel_weight: Tensor | None) -> Target:
        if mask.is_floating_point():
            onehot, valid = mask, None
        else:
            mask = self.comparable(mask)
            onehot, valid = mask == 1, mask != self.padding_value
            assert_async(
                (onehot | (mask == 0) | ~valid).all(),
                f"a one-hot mask holds a value that is not 0, 1 or {self.padding_value}",
            )
        if self.mode == "multiclass":
            classes = onehot.sum(1)
            if not mask.is_floating_point():
                assert_async((classes <= 1).all(), "a one-hot mask gives a pixel more than one class")
            valid = classes > 0 if valid is None else (classes > 0) & valid.all(1)
        return Target(onehot=onehot, valid=valid, pixel_weight=pixel_weight)

    def onehot(self, target: Target | Tensor) -> Tensor:
        """The one-hot form [B, K, *S] of a target or of an index mask: bool, or soft as given; 0 where not valid."""
        target = target if isinstance(target, Target) else self.target(target)
        onehot = target.onehot
        if onehot is None:
            assert target.index is not None
            shape = [1, -1] + [1] * (target.index.ndim - 1)
            numbers = self.channel_numbers(target.index.dtype, target.index.device)
            onehot = target.index.unsqueeze(1) == numbers.view(shape)
        valid = target.valid_channels
        return onehot if valid is None else torch.where(valid, onehot, torch.zeros_like(onehot))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the classes in multiclass, else a sigmoid a channel: [B, K, *S] -> [B, K, *S]."""
        return logits.softmax(1) if self.mode == "multiclass" else logits.sigmoid()

    def resample(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits of the probabilities at another size: [B, K, *S] -> [B, K, *size], linear between pixel centres.

        Probabilities are what lies between those of two pixels; logits, which know no bounds, are not.
        """
        if tuple(size) == tuple(logits.shape[2:]):
            return logits
        p = F.interpolate(self.probabilities(logits), size=tuple(size), mode=INTERPOLATION[len(size)])
        return p.log() if self.mode == "multiclass" else p.logit()

    def decode(self, logits: Tensor, threshold: float = 0.5) -> Tensor:
        """The mask that logits [B, K, *S] stand for, in the form that masks are stored in.

        multiclass: the class of the largest logit, [B, *S]; `threshold` has no meaning there. binary: 1 where the
        probability exceeds `threshold`, [B, *S]. multilabel: the same a class, [B, K, *S].
        """
        if not 0 < threshold < 1:
            raise ValueError(f"expected a threshold between 0 and 1, got {threshold}")
        if self.mode == "multiclass":
            return logits.argmax(1).to(self.mask_dtype)
        positive = (logits > math.log(threshold / (1 - threshold))).to(torch.uint8)
        return positive[:, 0] if self.mode == "binary" else positive
