"""One battery for all transforms: image and mask are transformed together, and the seed determines the result."""

import inspect
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from segkit.data.augment import PRESETS, TRANSFORMS, Swap, albumentations_engine, build_augment

from support.command_line import TINY, tool

PADDING = 255
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
        arguments["padding_value"] = PADDING
    return build_augment(engine, [function(**{"p": 1.0, **arguments})], PADDING)


def sample(dims, channels=1):
    """A 2D image or volume whose mask is 1 where its intensity exceeds 0.5."""
    size = (48, 64) if dims == 2 else (16, 20, 24)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in size], indexing="ij"))
    inside = (np.abs(grid).max(0) < 0.6).astype(np.uint8)
    image = np.repeat(inside[None] * 0.6 + 0.2, channels, 0).astype(np.float32)
    return image, inside


@pytest.mark.parametrize(("engine", "name", "dims"), CASES)
def test_the_seed_determines_the_result(engine, name, dims):
    channels = 3 if name == "hue_saturation" else 1
    image, mask = sample(dims, channels)
    image += np.linspace(0, 0.1, image.size // channels, dtype=np.float32).reshape(
        image.shape[1:]
    )  # breaks the mirror symmetry
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
def test_image_and_mask_are_transformed_together(engine, name, dims):
    image, mask = sample(dims)
    moved = 0
    for seed in range(8):
        out, out_mask = build(engine, name, dims)(image, mask, seed)
        assert set(np.unique(out_mask)) <= {0, 1, PADDING}
        valid = out_mask != PADDING
        agreement = ((out[0] > 0.5) == (out_mask == 1))[valid].mean()
        assert agreement > 0.97  # all but the interpolated edge
        moved += not np.array_equal(out_mask, mask)
    # flips and rotations by 90 degrees may leave a centred square unchanged
    assert moved or name in {"horizontal_flip", "vertical_flip", "rotate90", "flip"}


def test_affine_about_one_axis_rotates_within_the_slices():
    """Slices that were equal before are still equal."""
    image, mask = sample(3)
    image, mask = (np.repeat(array[..., 3:4], 5, -1) for array in (image, mask))
    moved = 0
    for seed in range(4):
        out, out_mask = build("monai", "affine", 3, axis=2, scale=0.0, rotate=30.0, p=1.0)(image, mask, seed)
        np.testing.assert_allclose(out, np.repeat(out[..., 2:3], 5, -1), atol=1e-5)
        moved += not np.array_equal(out_mask[..., 2], mask[..., 2])
    assert moved
    with pytest.raises(ValueError, match=r"affine: axis 2 .* 2 axes"):
        build("monai", "affine", 2, axis=2)(*sample(2), 0)


@pytest.mark.parametrize(("engine", "dims"), PLACES)
def test_pixels_from_outside_get_the_padding_value(engine, dims):
    image, mask = sample(dims)
    augment = build(engine, "affine", dims, rotate=0.0, scale=0.0, shift=0.3)
    fractions = [float((augment(image, mask, seed)[1] == PADDING).mean()) for seed in range(8)]
    assert max(fractions) > 0.05
    assert all(fraction < 0.8 for fraction in fractions)


@pytest.mark.parametrize(("engine", "dims"), PLACES)
def test_overlapping_masks_keep_their_channels(engine, dims):
    image, mask = sample(dims)
    both = np.stack([mask, np.roll(mask, 2, axis=-1), np.zeros_like(mask)])
    out, out_mask = build(engine, "affine", dims)(image, both, 3)
    assert out_mask.shape == both.shape
    np.testing.assert_array_equal(build(engine, "affine", dims)(image, mask, 3)[1], out_mask[0])
    assert out.shape == image.shape


def test_horizontal_flips():
    image = np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 6
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    flips = (("albumentations", "horizontal_flip"), ("torchvision", "horizontal_flip"), ("monai", "flip"))
    for engine, name in flips:
        arguments = {"axes": [1]} if name == "flip" else {}
        out, out_mask = build(engine, name, 2, **arguments)(image, mask, 0)
        np.testing.assert_allclose(out, image[:, :, ::-1], rtol=1e-6)
        np.testing.assert_array_equal(out_mask, mask[:, ::-1])


def test_albumentations_keep_values_outside_the_unit_range():
    """Images with intensities outside [0, 1] are not clipped by a flip."""
    image = np.linspace(-50, 300, 24 * 32, dtype=np.float32).reshape(1, 24, 32)
    mask = np.zeros((24, 32), dtype=np.uint8)
    out, _ = build("albumentations", "horizontal_flip", 2)(image, mask, 0)
    np.testing.assert_allclose(out, image[:, :, ::-1], rtol=1e-4)


@pytest.mark.parametrize("engine", ["albumentations", "torchvision"])
def test_2d_engines_refuse_volumes(engine):
    with pytest.raises(ValueError, match="engine: monai"):
        build(engine, "horizontal_flip", 2)(*sample(3), 0)


def test_torchvision_does_not_advance_the_global_generator():
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
def test_flipping_left_and_right_swaps_classes(engine, dims, arguments, channels):
    """Class 1 (left) is at the low end. After the flip it is at the high end and becomes class 2 (right)."""
    axis = 0 if dims == 3 else 1
    position = np.indices((8,) * dims)[axis]
    mask = np.where(position < 2, 1, np.where(position > 4, 2, 0)).astype(np.uint8)
    mask[(0,) * dims] = PADDING
    image = np.random.default_rng(0).random((1, *mask.shape)).astype(np.float32)
    stored = np.stack([mask == 1, mask == 2, mask == 0]).astype(np.uint8) if channels else mask
    swap = Swap(((0, 1),) if channels else ((1, 2),), channels)
    name = "flip" if engine == "monai" else "horizontal_flip"
    out, out_mask = build(engine, name, dims, swap=swap, **arguments)(image, stored, 0)
    np.testing.assert_allclose(out, np.flip(image, 1 + axis))
    flipped = np.flip(mask, axis)
    expected = np.where(flipped == 1, 2, np.where(flipped == 2, 1, flipped))
    if channels:
        expected = np.stack([expected == 1, expected == 2, expected == 0])
    np.testing.assert_array_equal(out_mask, expected)


@pytest.mark.parametrize(("dims", "axes"), [(2, [0]), (3, [1]), (3, [2])])
def test_other_flips_swap_no_classes(dims, axes):
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
        padding = {"padding_value": PADDING} if "padding_value" in inspect.signature(function).parameters else {}
        transforms.append(function(**options, **padding))
    image, mask = sample(dims)
    out, out_mask = build_augment(engine, transforms, PADDING)(image, mask, 0)
    assert (out.shape, out_mask.shape) == (image.shape, mask.shape)
    assert np.isfinite(out).all()
    assert set(np.unique(out_mask)) <= {0, 1, PADDING}
    assert (len(transforms) == 0) == (preset == "none")


def test_swap_on_flip_of_2d_nifti_files_is_refused(tmp_path):
    """In 2D NIfTI files the first axis runs from left to right, which horizontal_flip does not flip."""
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
    assert "runs from left to right" in " ".join(printed.split())


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
def test_arguments_out_of_range_are_reported_before_data_are_read(tmp_path, engine, transform):
    (tmp_path / "x.yaml").write_text(TINY)
    overrides = (f"augment.engine={engine}", f"augment.transforms=[{json.dumps(transform)}]")
    printed = tool("train", "--config", "x.yaml", *overrides, "run.dir=run", code=2, folder=tmp_path)
    assert next(key for key in transform if key != "name") in printed


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("largest", [2**21, 100])
def test_images_are_warped_as_the_library_does(monkeypatch, channels, largest):
    """To the bit, also one after another in sizes that share memory, and images too large for that."""
    import albumentations

    monkeypatch.setattr(albumentations_engine, "LARGEST_WARP", largest)
    ranges = {"rotate": (-30, 30), "scale": (0.7, 1.3), "translate_percent": (-0.1, 0.1), "shear": (-5, 5)}
    library = albumentations.Affine(**ranges, fill=0, fill_mask=9, p=1)
    ours = albumentations_engine.affine(padding_value=9, rotate=30, scale=0.3, shift=0.1, shear=5, p=1)
    results = []
    for seed, size in enumerate([(40, 50), (50, 40), (7, 90), (40, 50)]):
        generator = np.random.default_rng(seed)
        image = generator.normal(size=(*size, channels)).astype(np.float32)
        mask = generator.integers(0, 5, size).astype(np.uint8)
        pair = []
        for transform in (library, ours):
            compose = albumentations.Compose([transform])
            compose.set_random_seed(seed)
            pair.append(compose(image=image, mask=mask))
        results.append(pair)
    for expected, found in results:
        np.testing.assert_array_equal(found["image"], expected["image"])
        np.testing.assert_array_equal(found["mask"], expected["mask"])
