"""Losses that depend on where pixels lie, in a few lines of plain differentiable torch; see `reference_losses`.

Distances are those of every pixel to every other, and components are grown pixel by pixel. Skeletons, and the component
that is nearest to a pixel with ties, are those of `segkit.utils.morphology`; test_spatial.py checks their properties.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from skimage.morphology import dilation
from torch import Tensor

from segkit.utils.morphology import label_components, nearest_component, skeleton

from support.reference_losses import Pixels, entries, mean_or_zero, pair


def coordinates(space: Sequence[int]) -> Tensor:
    """The position of every pixel, [N, D]."""
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in space), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], -1)


def nearest(space: Sequence[int], among: Tensor) -> Tensor:
    """The distance of every pixel to the nearest of those where `among` [N] is true, [N]; inf if there is none."""
    places = coordinates(space)
    distances = (places.unsqueeze(1) - places[among].unsqueeze(0)).square().sum(-1).sqrt()
    return distances.amin(1) if among.any() else torch.full((len(places),), torch.inf, dtype=torch.float64)


def spatial_mean(
    pixels: Pixels,
    sums_of: Callable[[int, int], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    per: str = "batch",
    background: bool = False,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """The weighted mean over the classes in the reference of a function of sums, then the mean over groups.

    sums_of: the sums of an image and a class. loss: a function of the sums of a group and its number of valid pixels.
    """
    labels = pixels.labels
    weights = list(class_weights or [1.0] * labels.channels)
    if not background and labels.mode == "multiclass":
        weights[0] = 0.0
    means = []
    for images in [range(len(pixels.g))] if per == "batch" else [[b] for b in range(len(pixels.g))]:
        present = [(pixels.g * pixels.valid)[list(images), k].any() for k in range(labels.channels)]
        counted = [k for k in range(labels.channels) if weights[k] and present[k]]
        if counted:
            values = []
            for k in counted:
                n = sum((pixels.w[b] * pixels.valid[b, k]).sum() for b in images)
                values.append(weights[k] * loss(torch.stack([sums_of(b, k) for b in images]).sum(0), n))
            means.append(torch.stack(values).sum() / sum(weights[k] for k in counted))
    return mean_or_zero(means, pixels)


def of_class(pixels: Pixels, b: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, reference and weights of the pixels of an image and class, 0 where ignored, [N] each."""
    valid = pixels.valid[b, k]
    return (
        torch.where(valid, pixels.p[b, k], 0),
        torch.where(valid, pixels.g[b, k], 0),
        torch.where(valid, pixels.w[b], 0),
    )


def distance_map(pixels: Pixels, b: int, inside: Tensor, valid: Tensor, form: str, unit: str) -> Tensor:
    """The distance of every pixel to the boundary of a class, [N]; 0 if it has none."""
    others = valid & ~inside
    if not inside.any() or not others.any():
        return torch.zeros(len(inside), dtype=torch.float64)
    to_others, to_class = nearest(pixels.space, others), nearest(pixels.space, inside)
    d = torch.where(inside, 1 - to_others if form == "signed" else to_others, to_class)
    if unit in ("mm", "pixels"):  # the spacing is 1
        return d
    places = coordinates(pixels.space)[pixels.valid.any(1)[b]]
    return d / (places.amax(0) - places.amin(0) + 1).square().sum().sqrt()


def boundary(pixels: Pixels, distance: str = "pixels", offset: bool = True, **options) -> Tensor:
    """sum w d (p - g) / n"""

    def sums(b: int, k: int) -> Tensor:
        p, g, w = of_class(pixels, b, k)
        d = distance_map(pixels, b, g > 0, pixels.valid[b, k], "signed", distance)
        return (w * d * (p - g if offset else p)).sum()

    return spatial_mean(pixels, sums, lambda total, n: total / n, **options)


def hausdorff(
    pixels: Pixels, alpha: float = 2.0, one_sided: bool = True, log: bool = False, distance: str = "pixels", **options
) -> Tensor:
    """sum w (p - g)^2 (d^alpha + q^alpha) / n"""

    def sums(b: int, k: int) -> Tensor:
        p, g, w = of_class(pixels, b, k)
        d = distance_map(pixels, b, g > 0, pixels.valid[b, k], "unsigned", distance) ** alpha
        if not one_sided:
            d = d + distance_map(pixels, b, p > 0.5, pixels.valid[b, k], "unsigned", distance) ** alpha
        return (w * (p - g) ** 2 * d).sum()

    value = spatial_mean(pixels, sums, lambda total, n: total / n, **options)
    return (1 + value).log() if log else value


def surface(pixels: Pixels, **options) -> Tensor:
    """1 - sum w (d (1 - (g + p)))^2 / sum w d^2"""

    def sums(b: int, k: int) -> Tensor:
        p, g, w = of_class(pixels, b, k)
        d = distance_map(pixels, b, g > 0, pixels.valid[b, k], "signed", "diagonal")
        return torch.stack([(w * (d * (1 - (g + p))) ** 2).sum(), (w * d**2).sum()])

    return spatial_mean(pixels, sums, lambda s, _n: 1 - s[0] / s[1] if s[1] > 0 else 0 * s[0], **options)


def skeleton_recall(pixels: Pixels, radius: int = 2, eps: float | list[float] = 1e-5, **options) -> Tensor:
    """1 - (sum w s p + eps_n) / (sum w s + eps_d)"""
    eps_n, eps_d = pair(eps)

    def sums(b: int, k: int) -> Tensor:
        p, g, w = of_class(pixels, b, k)
        inside = (g > 0).reshape(pixels.space).numpy()
        s = skeleton(inside)
        for _dilation in range(radius):
            s = dilation(s, np.ones((3,) * s.ndim))
        s = torch.from_numpy(s & inside).flatten()
        return torch.stack([(w * s * p).sum(), (w * s).sum()])

    return spatial_mean(pixels, sums, lambda s, _n: 1 - (s[0] + eps_n) / (s[1] + eps_d), **options)


def with_neighbours(x: Tensor, axes: Sequence[int], beyond: float) -> list[Tensor]:
    """[*S] and its shifts by one pixel in both directions of each axis, with a value beyond the image."""
    edges = [torch.full_like(x.narrow(axis, 0, 1), beyond) for axis in axes]
    shifts = [
        (torch.cat([x.narrow(a, 1, x.shape[a] - 1), edge], a), torch.cat([edge, x.narrow(a, 0, x.shape[a] - 1)], a))
        for a, edge in zip(axes, edges, strict=True)
    ]
    return [x, *(shifted for both in shifts for shifted in both)]


def skeleton_of(x: Tensor, iterations: int, valid: Tensor) -> Tensor:
    """The soft skeleton of [*S] by the recursion of Shit et al. 2021."""

    def erode(x: Tensor) -> Tensor:
        x = torch.where(valid, x, 1)
        return torch.where(valid, torch.stack(with_neighbours(x, range(x.ndim), 1)).amin(0), 0)

    def opened(x: Tensor) -> Tensor:
        x = erode(x)
        for axis in range(x.ndim):
            x = torch.stack(with_neighbours(x, [axis], 0)).amax(0)
        return x

    skeleton = F.relu(x - opened(x))
    for _iteration in range(iterations):
        x = erode(x)
        delta = F.relu(x - opened(x))
        skeleton = skeleton + F.relu(delta - skeleton * delta)
    return skeleton


def cldice(pixels: Pixels, iterations: int, eps: float | list[float] = 1e-5, **options) -> Tensor:
    """1 - 2 precision sensitivity / (precision + sensitivity) of the soft skeletons"""
    eps_n, eps_d = pair(eps)

    def sums(b: int, k: int) -> Tensor:
        p, g, w = of_class(pixels, b, k)
        valid = pixels.valid[b, k].reshape(pixels.space)
        of_p, of_g = (skeleton_of(x.reshape(pixels.space), iterations, valid).flatten() for x in (p, g))
        return torch.stack([(w * of_p * g).sum(), (w * of_p).sum(), (w * of_g * p).sum(), (w * of_g).sum()])

    def loss(s: Tensor, _n: Tensor) -> Tensor:
        precision, sensitivity = (s[0] + eps_n) / (s[1] + eps_d), (s[2] + eps_n) / (s[3] + eps_d)
        return 1 - 2 * precision * sensitivity / (precision + sensitivity)

    return spatial_mean(pixels, sums, loss, **options)


def components_of(inside: Tensor, space: Sequence[int], corners: bool) -> list[Tensor]:
    """The connected components of a mask [N], bool [N] each, grown from one pixel by its neighbours."""
    places = coordinates(space)
    steps = (places.unsqueeze(0) - places.unsqueeze(1)).abs()
    neighbours = steps.amax(-1) <= 1 if corners else steps.sum(-1) <= 1
    left, found = inside.clone(), []
    while left.any():
        grown = torch.zeros_like(inside)
        grown[left.nonzero()[0]] = True
        for _step in itertools.count():
            larger = neighbours[grown].any(0) & inside
            if (larger == grown).all():
                break
            grown = larger
        found.append(grown)
        left &= ~grown
    return found


def regions_of(inside: Tensor, found: list[Tensor], space: Sequence[int]) -> list[Tensor]:
    """The pixels nearest to each component, bool [N] each. Ties go to either, so that only this is checked: that no
    other component is nearer than the one that the code under test has chosen."""
    components, _ = label_components(inside.reshape(space).numpy())
    chosen = torch.from_numpy(nearest_component(components, [1.0] * len(space))).flatten()
    regions = [chosen == torch.from_numpy(components).flatten()[one][0] for one in found]
    distances = torch.stack([nearest(space, one) for one in found]) if found else torch.zeros(0)
    for region, distance in zip(regions, distances, strict=True):
        assert (distance[region] == distances.amin(0)[region]).all()
    return regions


def component_dice(pixels: Pixels, of: str = "component", eps: float | list[float] = 1e-5, **options) -> Tensor:
    """The mean over components of 1 - (2 tp + eps_n) / (predicted + reference + eps_d)"""
    eps_n, eps_d = pair(eps)

    def sums(b: int, k: int) -> Tensor:
        p, g, w = of_class(pixels, b, k)
        found = components_of(g > 0, pixels.space, corners=True)
        regions = regions_of(g > 0, found, pixels.space) if of == "region" else []
        losses = []
        for number, one in enumerate(found):
            seen = regions[number] if of == "region" else (g == 0) | one
            size = (w * p * seen).sum() + (w * one).sum()
            losses.append(1 - (2 * (w * p * one).sum() + eps_n) / (size + eps_d))
        return torch.stack([torch.stack(losses).sum() if losses else 0 * p.sum(), torch.tensor(float(len(found)))])

    return spatial_mean(pixels, sums, lambda s, _n: s[0] / s[1], **options)


def border_cross_entropy(
    pixels: Pixels,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: Sequence[float] | None = None,
    normalize: str = "valid",
) -> Tensor:
    """sum w (w_class + w0 exp(-(d1 + d2)^2 / (2 sigma^2))) (-log p) / Z"""
    foreground = pixels.g[:, 1:] if pixels.labels.mode == "multiclass" else pixels.g
    objects = ((foreground > 0) & pixels.valid[:, -foreground.shape[1] :]).any(1)
    e, border = entries(pixels, class_weights=class_weights), []
    for b, inside in enumerate(objects):
        found = components_of(inside, pixels.space, corners=False)
        distances = [nearest(pixels.space, one) for one in found]
        two = torch.stack([*distances, *[torch.full_like(pixels.w[b], torch.inf)] * 2]).sort(0).values[:2].sum(0)
        border.append(torch.where(inside, 0, w0 * torch.exp(-(two**2) / (2 * sigma**2))))
    per_pixel = torch.stack(border)
    if pixels.labels.mode == "multiclass":
        valid, given = pixels.valid[:, 0], pixels.w
    else:
        valid, given = pixels.valid, pixels.w.unsqueeze(1).expand_as(pixels.valid)
        per_pixel = per_pixel.unsqueeze(1).expand_as(valid)
    weights = e.weights + (per_pixel * given)[valid].unsqueeze(-1)
    total = -(weights * e.g * e.log_p).sum()
    divisors = {"weights": (weights * e.g).sum(), "valid": len(e.log_p), "numel": valid.numel()}
    return total / divisors[normalize] if divisors[normalize] > 0 else 0 * total


SPATIAL_REFERENCES: dict[str, Callable[..., Tensor]] = {
    "boundary": boundary,
    "hausdorff": hausdorff,
    "surface": surface,
    "cldice": cldice,
    "skeleton_recall": skeleton_recall,
    "component_dice": component_dice,
    "border_cross_entropy": border_cross_entropy,
}
