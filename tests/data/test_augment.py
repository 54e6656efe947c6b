"""One battery over every transform of both engines: image and mask move together, draws belong to the seed."""

import inspect
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from segkit.data.augment import PRESETS, TRANSFORMS, Swap, build_augment

from support.command_line import TINY, tool

VOID = 255
CASES = [
    (engine, name, dims)
    for engine, table in TRANSFORMS.items()
    for name in table
    for dims in ((2, 3) if engine == "monai" else (2,))
]
PLACES = [("albumentations", 2), ("torchvision", 2), ("monai", 2), ("monai", 3)]
MOVING = {"horizontal_flip", "vertical_flip", "rotate90", "affine", "elastic", "flip"}


def build(engine, name, dims, **arguments):
    function = TRANSFORMS[engine][name]
    if name == "flip":
        arguments = {"axes": list(range(dims)), **arguments}
    if "padding_value" in inspect.signature(function).parameters:
        arguments["padding_value"] = VOID
    return build_augment(engine, [function(**{"p": 1.0, **arguments})], VOID)


def sample(dims, channels=1):
    """An image whose values tell its mask: smooth enough to survive interpolation, 3 channels for colour."""
    size = (48, 64) if dims == 2 else (16, 20, 24)
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


def test_thick_slices_are_turned_in_their_plane():
    """Whatever is the same in every slice still is."""
    image, mask = sample(3)
    image, mask = (np.repeat(array[..., 3:4], 5, -1) for array in (image, mask))
    moved = 0
    for seed in range(4):
        out, out_mask = build("monai", "affine", 3, axis=2, scale=0.0, rotate=30.0, p=1.0)(image, mask, seed)
        np.testing.assert_allclose(out, np.repeat(out[..., 2:3], 5, -1), atol=1e-5)
        moved += not np.array_equal(out_mask[..., 2], mask[..., 2])
    assert moved
    with pytest.raises(ValueError, match="axis 2 of affine is one of a volume"):
        build("monai", "affine", 2, axis=2)(*sample(2), 0)


@pytest.mark.parametrize(("engine", "dims"), PLACES)
def test_what_comes_in_from_outside_is_void(engine, dims):
    image, mask = sample(dims)
    augment = build(engine, "affine", dims, rotate=0.0, scale=0.0, shift=0.3)
    shares = [float((augment(image, mask, seed)[1] == VOID).mean()) for seed in range(8)]
    assert max(shares) > 0.05
    assert all(share < 0.8 for share in shares)


@pytest.mark.parametrize(("engine", "dims"), PLACES)
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
    flips = (("albumentations", "horizontal_flip"), ("torchvision", "horizontal_flip"), ("monai", "flip"))
    for engine, name in flips:
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


@pytest.mark.parametrize("engine", ["albumentations", "torchvision"])
def test_engines_of_pictures_refuse_volumes(engine):
    with pytest.raises(ValueError, match="engine: monai"):
        build(engine, "horizontal_flip", 2)(*sample(3), 0)


def test_torch_draws_for_the_training_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build("torchvision", "affine", 2)(*sample(2), 5)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("engine", "dims", "arguments"),
    [
        ("albumentations", 2, {}),
        ("torchvision", 2, {}),
        ("monai", 2, {"axes": [1]}),
        ("monai", 3, {"axes": [0]}),
        ("monai", 3, {"axes": [-3]}),
    ],
)
@pytest.mark.parametrize("channels", [False, True])
def test_a_mirror_of_left_and_right_exchanges_classes(engine, dims, arguments, channels):
    """Left is 1 and lies at the low end; mirrored it lies at the high end, and is called right, 2, there."""
    axis = 0 if dims == 3 else 1
    place = np.arange(8).reshape([-1 if axis == one else 1 for one in range(dims)]) + np.zeros((8,) * dims, int)
    mask = np.where(place < 2, 1, np.where(place > 4, 2, 0)).astype(np.uint8)
    mask[(0,) * dims] = VOID
    image = np.random.default_rng(0).random((1, *mask.shape)).astype(np.float32)
    given = np.stack([mask == 1, mask == 2, mask == 0]).astype(np.uint8) if channels else mask
    swap = Swap(((0, 1),) if channels else ((1, 2),), channels)
    name = "flip" if engine == "monai" else "horizontal_flip"
    out, out_mask = build(engine, name, dims, swap=swap, **arguments)(image, given, 0)
    np.testing.assert_allclose(out, np.flip(image, 1 + axis))
    flipped = np.flip(mask, axis)
    expected = np.where(flipped == 1, 2, np.where(flipped == 2, 1, flipped))
    if channels:
        expected = np.stack([expected == 1, expected == 2, expected == 0])
    np.testing.assert_array_equal(out_mask, expected)


@pytest.mark.parametrize(("dims", "axes"), [(2, [0]), (3, [1]), (3, [2])])
def test_other_mirrors_exchange_nothing(dims, axes):
    image, mask = sample(dims)
    _out, out_mask = build("monai", "flip", dims, swap=Swap(((0, 1),), channels=False), axes=axes)(image, mask, 0)
    np.testing.assert_array_equal(out_mask, np.flip(mask, axes[0]))


@pytest.mark.parametrize("engine", TRANSFORMS)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_lists_of_transforms(engine, preset):
    if preset == "nnunet" and engine != "monai":
        with pytest.raises(ValueError, match="for the engine"):
            PRESETS[preset](engine)
        return
    dims, transforms = (3 if engine == "monai" else 2), []
    for entry in PRESETS[preset](engine):
        options = {"name": entry} if isinstance(entry, str) else dict(entry)
        function = TRANSFORMS[engine][options.pop("name")]
        filling = {"padding_value": VOID} if "padding_value" in inspect.signature(function).parameters else {}
        transforms.append(function(**options, **filling))
    image, mask = sample(dims)
    out, out_mask = build_augment(engine, transforms, VOID)(image, mask, 0)
    assert (out.shape, out_mask.shape) == (image.shape, mask.shape)
    assert np.isfinite(out).all()
    assert set(np.unique(out_mask)) <= {0, 1, VOID}
    assert (len(transforms) == 0) == (preset == "none")


def test_sides_of_pictures_whose_first_axis_is_across_are_refused(tmp_path):
    """Flat NIfTI files have x first, which horizontal_flip leaves as it is."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            flat = np.random.default_rng(number).integers(0, 3, (16, 16)).astype(np.uint8)
            nib.save(nib.Nifti1Image(flat, np.eye(4)), tmp_path / kind / f"{number}.nii.gz")
    data = next(line for line in TINY.splitlines() if line.startswith("data:"))
    pairs = "data: {name: pairs, images: images, masks: masks}\nsplit: {name: kfold, folds: 2}"
    (tmp_path / "x.yaml").write_text(TINY.replace(data, pairs))
    swap = "augment.swap_on_flip=[[a, b]]"
    printed = tool("train", "--config", "x.yaml", swap, "run.dir=run", code=2, folder=tmp_path)
    assert "first axis runs from left to right" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("engine", "transform"),
    [
        ("albumentations", {"name": "affine", "scale": 1.5}),
        ("albumentations", {"name": "affine", "rotate": -5}),
        ("albumentations", {"name": "gamma", "low": 2, "high": 1}),
        ("torchvision", {"name": "affine", "scale": 1.0}),
        ("monai", {"name": "low_resolution", "zoom": 0}),
        ("monai", {"name": "gaussian_noise", "sd": -1}),
    ],
)
def test_arguments_out_of_range_are_told_before_anything_is_read(tmp_path, engine, transform):
    (tmp_path / "x.yaml").write_text(TINY)
    given = (f"augment.engine={engine}", f"augment.transforms=[{json.dumps(transform)}]")
    printed = tool("train", "--config", "x.yaml", *given, "run.dir=run", code=2, folder=tmp_path)
    assert next(key for key in transform if key != "name") in printed
