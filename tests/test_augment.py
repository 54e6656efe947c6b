"""One battery over every transform of both engines: image and mask move together, draws belong to the seed."""

import inspect

import numpy as np
import pytest

from segkit.data.augment import ALBUMENTATIONS, MONAI, build_augment

VOID = 255
CASES = [("albumentations", name, 2) for name in ALBUMENTATIONS] + [
    ("monai", name, dims) for name in MONAI for dims in (2, 3)
]
MOVING = {"horizontal_flip", "vertical_flip", "rotate90", "affine", "elastic", "flip"}


def build(engine, name, dims, **arguments):
    table = ALBUMENTATIONS if engine == "albumentations" else MONAI
    function = table[name]
    if name == "flip":
        arguments = {"axes": list(range(dims)), **arguments}
    if "void" in inspect.signature(function).parameters:
        arguments["void"] = VOID
    return build_augment(engine, [function(**{"p": 1.0, **arguments})], VOID)


def sample(dims, channels=1):
    """An image whose values tell its mask: smooth enough to survive interpolation, 3 channels for colour."""
    size = (24, 32) if dims == 2 else (16, 20, 24)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in size], indexing="ij"))
    inside = (np.abs(grid).max(0) < 0.6).astype(np.uint8)
    image = np.repeat(inside[None] * 0.6 + 0.2, channels, 0).astype(np.float32)
    return image, inside


@pytest.mark.parametrize(("engine", "name", "dims"), CASES)
def test_draws_belong_to_the_seed(engine, name, dims):
    channels = 3 if name == "hue_saturation" else 1
    image, mask = sample(dims, channels)
    image += np.linspace(0, 0.1, image.size // channels, dtype=np.float32).reshape(image.shape[1:])  # no mirror image
    if channels == 3:
        image *= np.array([1.0, 0.6, 0.3], dtype=np.float32)[:, None, None]
    augment = build(engine, name, dims, **({"p": 0.5} if "flip" in name else {}))
    results = [augment(image, mask, seed) for seed in (*range(8), *range(8))]
    for first, again in zip(results[:8], results[8:], strict=True):
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
    assert len({result[0].tobytes() for result in results}) > 1
    assert all(result[0].dtype == np.float32 and result[1].dtype == np.uint8 for result in results)


@pytest.mark.parametrize(("engine", "name", "dims"), [case for case in CASES if case[1] in MOVING])
def test_image_and_mask_move_together(engine, name, dims):
    image, mask = sample(dims)
    moved = 0
    for seed in range(8):
        out, out_mask = build(engine, name, dims)(image, mask, seed)
        assert set(np.unique(out_mask)) <= {0, 1, VOID}
        counts = out_mask != VOID
        agreement = ((out[0] > 0.5) == (out_mask == 1))[counts].mean()
        assert agreement > 0.97  # all but the interpolated edge
        moved += not np.array_equal(out_mask, mask)
    # a draw may turn by a multiple that a symmetric square does not show; a centred square is its own mirror image
    assert moved or name in {"horizontal_flip", "vertical_flip", "rotate90", "flip"}


@pytest.mark.parametrize(("engine", "dims"), [("albumentations", 2), ("monai", 2), ("monai", 3)])
def test_what_comes_in_from_outside_is_void(engine, dims):
    image, mask = sample(dims)
    augment = build(engine, "affine", dims, rotate=0.0, scale=0.0, shift=0.3)
    shares = [float((augment(image, mask, seed)[1] == VOID).mean()) for seed in range(8)]
    assert max(shares) > 0.05
    assert all(share < 0.8 for share in shares)


@pytest.mark.parametrize(("engine", "dims"), [("albumentations", 2), ("monai", 2), ("monai", 3)])
def test_overlapping_masks_keep_their_channels(engine, dims):
    image, mask = sample(dims)
    both = np.stack([mask, np.roll(mask, 2, axis=-1), np.zeros_like(mask)])
    out, out_mask = build(engine, "affine", dims)(image, both, 3)
    assert out_mask.shape == both.shape
    np.testing.assert_array_equal(build(engine, "affine", dims)(image, mask, 3)[1], out_mask[0])
    assert out.shape == image.shape


def test_flips_mirror():
    image = np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 6
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for engine, name in (("albumentations", "horizontal_flip"), ("monai", "flip")):
        arguments = {"axes": [1]} if name == "flip" else {}
        out, out_mask = build(engine, name, 2, **arguments)(image, mask, 0)
        np.testing.assert_allclose(out, image[:, :, ::-1], rtol=1e-6)
        np.testing.assert_array_equal(out_mask, mask[:, ::-1])


def test_albumentations_keep_values_outside_the_unit_range():
    """The engine clips to [0, 1]; images of other ranges must come back in their own."""
    image = np.linspace(-50, 300, 24 * 32, dtype=np.float32).reshape(1, 24, 32)
    mask = np.zeros((24, 32), dtype=np.uint8)
    out, _ = build("albumentations", "horizontal_flip", 2)(image, mask, 0)
    np.testing.assert_allclose(out, image[:, :, ::-1], rtol=1e-4)


def test_albumentations_refuse_volumes():
    with pytest.raises(ValueError, match="engine: monai"):
        build("albumentations", "horizontal_flip", 2)(*sample(3), 0)
