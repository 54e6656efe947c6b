"""The soft skeleton of Shit et al. 2021, and its gradient without keeping every iteration in memory.

Let e_0 be the image and e_j its j-th erosion. With the opening of e_j, which is the dilation of e_(j+1),

    delta_j = max(0, e_j - dilate(e_(j+1)))        S = 1 - prod_j (1 - delta_j),    j = 0 ... n

The paper writes S as a recursion, s <- s + max(0, delta_j - s delta_j), which gives the same product, since every
delta_j and every s lies between 0 and 1. The product has no order, so its gradient needs the delta_j one at a time.

Where several neighbours have the smallest or largest value, each gets an equal share of the gradient, so that it does
not depend on the direction of an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

Index = tuple[slice, ...]
Choose = Callable[..., Tensor]  # torch.minimum or torch.maximum


def _neighbours(ndim: int, axes: range) -> list[tuple[Index, Index]]:
    """For both directions along each axis: the pixels that have a neighbour there, and these neighbours."""
    every = (slice(None),)
    pairs = []
    for axis in axes:
        before, after = every * axis, every * (ndim - axis - 1)
        first, last = (*before, slice(1, None), *after), (*before, slice(None, -1), *after)
        pairs += [(first, last), (last, first)]
    return pairs


def _extreme(x: Tensor, axes: range, choose: Choose) -> Tensor:
    """The smallest or largest of each value and its direct neighbours along the axes."""
    if torch.compiler.is_compiling():
        return _stacked_extreme(x, axes, choose)
    result = x.clone()
    for here, there in _neighbours(x.ndim, axes):
        choose(result[here], x[there], out=result[here])
    return result


def _stacked_extreme(x: Tensor, axes: range, choose: Choose) -> Tensor:
    """The same in operations that have a gradient, with the same shares for equal values."""
    beyond = math.inf if choose is torch.minimum else -math.inf
    shifted = [x]
    for axis in axes:
        padded = F.pad(x, [0, 0] * (x.ndim - axis - 1) + [1, 1], value=beyond)
        shifted += [padded.narrow(axis, start, x.shape[axis]) for start in (0, 2)]
    return torch.stack(shifted).amin(0) if choose is torch.minimum else torch.stack(shifted).amax(0)


def _extreme_slope(x: Tensor, result: Tensor, slope: Tensor, axes: range) -> Tensor:
    """The gradient of sum(slope * result) with respect to x, if `result` is the extreme of x along the axes."""
    pairs = _neighbours(x.ndim, axes)
    ties = (x == result).to(x.dtype)
    for here, there in pairs:
        ties[here] += x[there] == result[here]
    share = slope / ties
    gradient = share * (x == result)
    for here, there in pairs:
        gradient[there] += share[here] * (x[there] == result[here])
    return gradient


def _spatial(x: Tensor) -> range:
    return range(2, x.ndim)


def soft_erode(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """The smallest value among each pixel of [b, k, *S] and its direct neighbours. Pixels beyond the image, and those
    where `valid` is false, do not count; the latter become 0."""
    if valid is None:
        return _extreme(x, _spatial(x), torch.minimum)
    return torch.where(valid, _extreme(torch.where(valid, x, math.inf), _spatial(x), torch.minimum), 0)


def soft_dilate(x: Tensor) -> Tensor:
    """The largest value among each pixel of [b, k, *S] and all of its neighbours. Pixels beyond the image do not count;
    those that are not valid are 0, and so have no effect."""
    for axis in _spatial(x):
        x = _extreme(x, range(axis, axis + 1), torch.maximum)
    return x


def _delta_and_erosion(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """delta_j and e_(j+1) from e_j."""
    eroded = soft_erode(x, valid)
    return (x - soft_dilate(eroded)).relu(), eroded


def soft_skeleton(x: Tensor, iterations: int, valid: Tensor | None = None) -> Tensor:
    """The soft skeleton of values between 0 and 1, [b, k, *S].

    iterations: n. Structures are complete if n + 1 is at least their radius in steps along the axes.
    valid: bool [b, 1 or k, *S]; values are 0 where it is false, and these pixels neither erode nor dilate others.
    """
    background = torch.ones_like(x)
    for _iteration in range(iterations + 1):
        delta, x = _delta_and_erosion(x, valid)
        background = background * (1 - delta)
    return 1 - background


@torch.no_grad()
def skeleton_gradient(x: Tensor, iterations: int, valid: Tensor | None, slope: Tensor) -> Tensor:
    """The gradient of sum(slope * soft_skeleton(x)) with respect to x.

    The erosions are computed again in about sqrt(n) sections, so that about 2 sqrt(n) of them are in memory at a time.
    """
    others = _ProductOfOthers.of(x, iterations, valid)
    gradient = torch.zeros_like(x)
    for e in _erosions_backwards(x, iterations, valid):
        gradient = _iteration_slope(e, valid, others, slope, gradient)
    return gradient


def _iteration_slope(
    e: Tensor, valid: Tensor | None, others: _ProductOfOthers, slope: Tensor, erosion_slope: Tensor
) -> Tensor:
    """The gradient with respect to e_j. slope: that of S; erosion_slope: that of e_(j+1) through later iterations."""
    counted = e if valid is None else torch.where(valid, e, math.inf)
    smallest = _extreme(counted, _spatial(e), torch.minimum)
    dilations = [smallest if valid is None else torch.where(valid, smallest, 0)]
    for axis in _spatial(e):
        dilations.append(_extreme(dilations[-1], range(axis, axis + 1), torch.maximum))
    delta = (e - dilations[-1]).relu_()
    delta_slope = slope * others.without(delta) * (delta > 0)
    dilation_slope = -delta_slope
    for axis in reversed(_spatial(e)):
        largest = dilations.pop()
        dilation_slope = _extreme_slope(dilations[-1], largest, dilation_slope, range(axis, axis + 1))
    total = erosion_slope + dilation_slope
    total = total if valid is None else torch.where(valid, total, 0)
    through_erosion = _extreme_slope(counted, smallest, total, _spatial(e))
    result = delta_slope + through_erosion
    return result if valid is None else torch.where(valid, result, 0)


class _ProductOfOthers:
    """prod over i != j of (1 - delta_i), for any j: the product of the factors that are not 0, and the number of those
    that are."""

    def __init__(self, product: Tensor, zeros: Tensor) -> None:
        self.product, self.zeros = product, zeros

    @staticmethod
    def of(x: Tensor, iterations: int, valid: Tensor | None) -> _ProductOfOthers:
        product, zeros = torch.ones_like(x), torch.zeros_like(x, dtype=torch.uint8)
        for _iteration in range(iterations + 1):
            delta, x = _delta_and_erosion(x, valid)
            factor = 1 - delta
            is_zero = factor == 0
            zeros += is_zero
            product *= torch.where(is_zero, 1, factor)
        return _ProductOfOthers(product, zeros)

    def without(self, delta: Tensor) -> Tensor:
        """The product without the factor 1 - delta."""
        factor = 1 - delta
        is_zero = factor == 0
        rest = self.product / torch.where(is_zero, 1, factor)
        return torch.where(self.zeros == is_zero, rest, 0)


def _erosions_backwards(x: Tensor, iterations: int, valid: Tensor | None) -> Iterator[Tensor]:
    """e_n, ..., e_0."""
    length = max(1, math.isqrt(iterations + 1))
    sections = [range(start, min(start + length, iterations + 1)) for start in range(0, iterations + 1, length)]
    first_of_section = []
    for section in sections:
        first_of_section.append(x)
        for _erosion in section:
            x = soft_erode(x, valid)
    for section, first in zip(reversed(sections), reversed(first_of_section), strict=True):
        erosions = [first]
        for _erosion in section[1:]:
            erosions.append(soft_erode(erosions[-1], valid))
        yield from reversed(erosions)
