"""Less common image formats, compared with SimpleITK, pydicom and OpenCV; hostile files; missing optional packages."""

import gzip
import io
import os
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
import scipy.io
import SimpleITK as sitk
import tifffile
from PIL import Image

from segkit import Labels
from segkit.data import SOURCES, Case, DataError, MaskFile
from segkit.data.cases import data_digest, file_stamps
from segkit.data.formats import FORMATS, format_name, is_image
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.readers import geometry_of, number_type, read_files, read_image, read_mask, read_masks
from segkit.utils.errors import MissingExtra

needs_data = pytest.mark.skipif("SEGKIT_DATA" not in os.environ, reason="SEGKIT_DATA does not name the real data")
DATA = Path(os.environ.get("SEGKIT_DATA", "")) / "formats"

THREE = Labels(["background", "a", "b"], ignore_index=255)
TWO = Labels(["background", "a"])
OVERLAPPING = Labels(["whole", "core"], mode="multilabel")
NUMBERS = np.random.default_rng(0).integers(0, 3, (7, 6, 5)).astype(np.uint8)  # [z, y, x], the axis order of SimpleITK


def saved(path, array, direction=None, spacing=(1.0, 2.0, 3.0), origin=(10.0, -5.0, 3.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.asarray(direction, dtype=float).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


# volumes

DIRECTIONS = {
    "identity": np.eye(3),
    "mirrored": np.diag([-1.0, -1.0, 1.0]),
    "turned": np.eye(3)[[2, 0, 1]],
    "oblique": np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]]),
}


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_volumes_match_nifti(tmp_path, ending, direction):
    """Pixels, spacing and geometry equal those of a NIfTI file that SimpleITK writes and nibabel reads."""
    array = NUMBERS.astype(np.int16) * 100 - 50
    paths = [saved(tmp_path / f"x.{suffix}", array, DIRECTIONS[direction]) for suffix in (ending, "nii.gz")]
    (image, spacing), (expected, expected_spacing) = map(read_image, paths)
    np.testing.assert_array_equal(image, expected)
    assert spacing == pytest.approx(expected_spacing)
    geometry, expected_geometry = (geometry_of(path, "x") for path in paths)
    np.testing.assert_allclose(geometry.affine, expected_geometry.affine, atol=1e-4)
    masks = [saved(tmp_path / f"y.{suffix}", NUMBERS, DIRECTIONS[direction]) for suffix in (ending, "nii.gz")]
    np.testing.assert_array_equal(*(read_mask(path, THREE) for path in masks))


def test_multichannel_volume(tmp_path):
    array = np.random.default_rng(1).normal(size=(7, 6, 5, 2)).astype(np.float32)
    image = sitk.GetImageFromArray(array, isVector=True)
    sitk.WriteImage(image, str(tmp_path / "x.nrrd"))
    read, spacing = read_image(tmp_path / "x.nrrd")
    assert spacing == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(read, array.transpose(3, 2, 1, 0)[:, ::-1, ::-1])


def test_2d_images_in_volume_formats_stay_2d(tmp_path):
    image = sitk.GetImageFromArray(NUMBERS[0])
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    read, spacing = read_image(tmp_path / "x.mha")
    assert (read.shape, spacing) == ((1, 5, 6), (1.0, 1.0))


# DICOM


@needs_data
@pytest.mark.parametrize("study", ["Study1", "Study2", "Study3"])
def test_series_slices_are_in_order(study):
    """Compared with pydicom: slices sorted by z position, intensities rescaled."""
    folder = next((DATA / "dicom_series" / study).iterdir())
    image, spacing = read_image(folder)
    headers = [pydicom.dcmread(file) for file in folder.iterdir()]
    slices = sorted(headers, key=lambda header: float(header.ImagePositionPatient[2]))
    stack = np.stack(
        [
            header.pixel_array * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
            for header in slices
        ]
    )
    assert image.shape == (1, *stack.transpose(2, 1, 0).shape)
    rows, columns = np.array(slices[0].ImageOrientationPatient[:3]), np.array(slices[0].ImageOrientationPatient[3:])
    assert abs(rows[0]) == 1
    assert abs(columns[1]) == 1
    # direction 1 is left for rows and posterior for columns; RAS is right and anterior
    expected = stack.transpose(2, 1, 0)[:: int(-rows[0]), :: int(-columns[1])]
    np.testing.assert_allclose(image[0], expected, rtol=1e-6)
    assert spacing[0] == pytest.approx(float(slices[0].PixelSpacing[1]))


@needs_data
def test_series_with_a_missing_slice_is_refused(tmp_path):
    folder = next((DATA / "dicom_series/Study1").iterdir())
    for file in folder.iterdir():
        if file.name != "7.dcm":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="equal distances"):
        read_image(tmp_path)


@needs_data
def test_dicom_segmentation_matches_its_nrrd_export():
    segmentation, nrrd = DATA / "dicom_seg/seg/label.seg", DATA / "dicom_seg/nrrd/label.nrrd"
    np.testing.assert_array_equal(read_mask(segmentation, TWO), read_mask(nrrd, TWO))
    case = Case("x", "x", images=(DATA / "dicom_seg/image",), masks=(MaskFile(segmentation),))
    raw = read_files(case, TWO)
    assert raw.mask.shape == raw.image.shape[1:]
    assert raw.mask.sum() == sitk.GetArrayFromImage(sitk.ReadImage(str(nrrd))).sum()
    with pytest.raises(DataError, match="which is a mask"):
        read_image(segmentation)


@needs_data
def test_single_dicom_image():
    file = DATA / "dicom_seg/image/IMG0001.dcm"
    image, spacing = read_image(file)
    header = pydicom.dcmread(file)
    assert image.shape == (1, header.Columns, header.Rows)
    assert spacing == pytest.approx([float(side) for side in header.PixelSpacing])


@needs_data
def test_errors_do_not_reveal_patient_data(tmp_path):
    """A truncated file whose header holds a name, an ID and a birth date."""
    header = pydicom.dcmread(DATA / "dicom_seg/image/IMG0001.dcm")
    header.PatientName, header.PatientID, header.PatientBirthDate = "Doe^Jane", "SECRET-7", "19700101"
    header.save_as(tmp_path / "x.dcm")
    whole = (tmp_path / "x.dcm").read_bytes()
    (tmp_path / "x.dcm").write_bytes(whole[: len(whole) - 300])
    code = (
        "import sys\nfrom pathlib import Path\nfrom segkit.data import DataError\n"
        "from segkit.data.readers import read_image\n"
        "try: print(read_image(Path(sys.argv[1])))\nexcept DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.dcm"], capture_output=True, text=True, check=True)
    for word in ("Doe", "Jane", "SECRET", "1970"):
        assert word not in done.stdout + done.stderr


# masks


def test_colour_coded_masks(tmp_path):
    colors = {"background": [0, 0, 0], "a": [255, 0, 10], "b": [0, 128, 0], "ignore": [255, 255, 255]}
    numbers = np.random.default_rng(2).choice([0, 1, 2, 255], (9, 8)).astype(np.uint8)
    picture = np.zeros((9, 8, 3), np.uint8)
    for number, name in ((0, "background"), (1, "a"), (2, "b"), (255, "ignore")):
        picture[numbers == number] = colors[name]
    Image.fromarray(picture).save(tmp_path / "x.png")
    code = MaskEncoding(colors=colors)
    code.check(THREE)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png", THREE, code), numbers)
    picture[0, 0] = (1, 2, 3)
    Image.fromarray(picture).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"\[1, 2, 3\] \(1 pixel"):
        read_mask(tmp_path / "x.png", THREE, code)
    with pytest.raises(DataError, match=r"5 colours.*`colors: {background: \[0, 0, 0\], a: \["):
        read_mask(tmp_path / "x.png", THREE)


CHANNELS = {"grey": (), "RGB": (3,), "four channels": (4,), "six channels": (6,)}


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
def test_tiff_with_any_number_of_channels(tmp_path, kind, channels, compression):
    """Interleaved and planar channels, strips and tiles, one page and several."""
    for shape in ((33, 18), (4, 33, 18)):
        array = np.random.default_rng(1).random((*shape, *CHANNELS[channels]))
        array = (array * 255).astype(kind) if kind[0] == "u" else array.astype(kind)
        colour = {"photometric": "rgb"} if channels == "RGB" else {"photometric": "minisblack"}
        expected = np.moveaxis(array, -1, 0) if CHANNELS[channels] else array[None]
        expected = expected / np.iinfo(kind).max if kind[0] == "u" else expected
        for planar in ("contig", "separate") if CHANNELS[channels] else (None,):
            own = {"planarconfig": planar} if planar else {}
            stored = np.moveaxis(array, -1, -3) if planar == "separate" else array
            for layout in ({}, {"tile": (16, 16)}):
                tifffile.imwrite(tmp_path / "x.tif", stored, compression=compression, **colour, **own, **layout)
                image, spacing = read_image(tmp_path / "x.tif")
                np.testing.assert_allclose(image, expected, rtol=1e-6)
                assert spacing == (1,) * len(shape)
                assert number_type(tmp_path / "x.tif") == kind


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "jpeg", "packbits"])
def test_truncated_tiff_is_refused(tmp_path, compression):
    pixels = np.random.default_rng(2).integers(0, 255, (64, 64), np.uint8)
    for layout in ({}, {"rowsperstrip": 8}, {"tile": (16, 16)}):
        tifffile.imwrite(tmp_path / "x.tif", pixels, compression=compression, **layout)
        content = (tmp_path / "x.tif").read_bytes()
        for share in (0.01, 0.2, 0.5, 0.8, 0.99):
            (tmp_path / "x.tif").write_bytes(content[: int(share * len(content))])
            with pytest.raises(DataError, match=r"x\.tif"):
                read_image(tmp_path / "x.tif")


def test_tiff_with_alpha_palette_and_zero_as_white(tmp_path):
    colours = np.random.default_rng(3).integers(0, 255, (7, 9, 4), np.uint8)
    Image.fromarray(colours).save(tmp_path / "x.tif")
    np.testing.assert_allclose(read_image(tmp_path / "x.tif")[0], np.moveaxis(colours[..., :3], -1, 0) / 255, rtol=1e-6)
    palette = Image.fromarray(NUMBERS[0].astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 64, 0, 255, 0])
    palette.putdata(NUMBERS[0].reshape(-1).tolist())
    palette.save(tmp_path / "p.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.tif", THREE), NUMBERS[0])
    shown = np.array([[0, 0, 0], [128, 0, 64], [0, 255, 0]])[NUMBERS[0]] / 255
    np.testing.assert_allclose(read_image(tmp_path / "p.tif")[0], np.moveaxis(shown, -1, 0), atol=1e-6)
    tifffile.imwrite(tmp_path / "w.tif", colours[..., 0], photometric="miniswhite")
    np.testing.assert_allclose(read_image(tmp_path / "w.tif")[0][0], 1 - colours[..., 0] / 255, atol=1e-6)


@pytest.mark.parametrize("write", [lambda path, mask: Image.fromarray(mask).save(path), tifffile.imwrite])
def test_one_bit_tiff(tmp_path, write):
    """Eight pixels per byte, so that the file is smaller than its number of pixels."""
    mask = np.random.default_rng(5).random((40, 50)) > 0.5
    write(tmp_path / "x.tif", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.tif", Labels(["no", "yes"])), mask)
    shown = 1 - mask if write is tifffile.imwrite else mask  # tifffile writes that 0 is white
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[0][0], shown)


def test_tiff_pages_are_never_lost(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for kind in (np.uint8, np.uint16):
            file.write(np.ones((8, 9), kind), contiguous=False)
    with pytest.raises(DataError, match="pages of one size"):
        read_image(tmp_path / "x.tif")
    with tifffile.TiffWriter(tmp_path / "y.tif") as file:
        for page in np.random.default_rng(6).integers(0, 255, (6, 40, 50), np.uint8):
            file.write(page, contiguous=False)
    content = (tmp_path / "y.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "y.tif") as file:
        third = file.pages[2].offset
    (tmp_path / "y.tif").write_bytes(content[:third])
    with pytest.raises(DataError, match=r"y\.tif.* damaged"):
        read_image(tmp_path / "y.tif")
    tifffile.imwrite(tmp_path / "z.tif", np.ones((8, 9), np.complex64))
    with pytest.raises(DataError, match="complex64"):
        read_image(tmp_path / "z.tif")


def test_gif_is_read_as_one_frame(tmp_path):
    mask = np.random.default_rng(7).integers(0, 2, (20, 30)).astype(np.uint8)
    Image.fromarray(mask * 255).save(tmp_path / "x.gif")
    code = MaskEncoding(value_map={255: 1})
    np.testing.assert_array_equal(read_mask(tmp_path / "x.gif", Labels(["no", "yes"]), code), mask)
    np.testing.assert_array_equal(read_image(tmp_path / "x.gif")[0].max(0), mask)


def test_imagej_channels_are_read_and_time_axes_refused(tmp_path):
    stack = np.random.default_rng(4).integers(0, 255, (5, 2, 8, 9), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    image, _spacing = read_image(tmp_path / "x.tif")
    np.testing.assert_allclose(image, stack.swapaxes(0, 1) / 255, rtol=1e-6)
    tifffile.imwrite(tmp_path / "t.tif", stack, imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(DataError, match=r"axes TZYX of \[5, 2, 8, 9\]"):
        read_image(tmp_path / "t.tif")


def test_nearest_color_decodes_jpeg_masks(tmp_path):
    colors = {"background": [0, 0, 0], "a": [255, 0, 10], "b": [0, 128, 0]}
    numbers = np.zeros((48, 48), np.uint8)
    numbers[:16, :16], numbers[32:, 16:] = 1, 2
    Image.fromarray(np.array(list(colors.values()), np.uint8)[numbers]).save(tmp_path / "x.jpg", quality=85)
    stored = np.array(Image.open(tmp_path / "x.jpg")).astype(int)
    distances = [((stored - color) ** 2).sum(-1) for color in colors.values()]
    code = MaskEncoding(colors=colors, nearest_color=True)
    code.check(THREE)
    mask = read_mask(tmp_path / "x.jpg", THREE, code)
    np.testing.assert_array_equal(mask, np.argmin(distances, 0))
    assert (mask == numbers).mean() > 0.97
    with pytest.raises(DataError, match=r"`nearest_color: true`"):
        read_mask(tmp_path / "x.jpg", THREE, MaskEncoding(colors=colors))
    with pytest.raises(ValueError, match=r"nearest_color.* colors"):
        MaskEncoding(nearest_color=True).check(THREE)


def test_png_with_a_wrong_checksum_is_refused(tmp_path):
    """OpenCV and Pillow would decode it to wrong pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[len(content) // 2] ^= 8
    (tmp_path / "x.png").write_bytes(content)
    for read in (read_image, lambda path: read_mask(path, THREE)):
        with pytest.raises(DataError, match=r"x\.png.*checksum"):
            read(tmp_path / "x.png")


def test_threshold_decodes_jpeg_masks(tmp_path):
    numbers = np.zeros((32, 32), np.uint8)
    numbers[8:24, 8:24] = 1
    Image.fromarray(numbers * 255).save(tmp_path / "x.jpg", quality=70)
    with pytest.raises(DataError, match="JPEG"):
        read_mask(tmp_path / "x.jpg", TWO)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.jpg", TWO, MaskEncoding(threshold=128)), numbers)


def test_one_hot_channels(tmp_path):
    numbers = np.random.default_rng(3).integers(0, 3, (6, 5))
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.uint8)[numbers].transpose(2, 0, 1))
    np.testing.assert_array_equal(read_mask(tmp_path / "x.npy", THREE, MaskEncoding(one_hot=True)), numbers)
    np.save(tmp_path / "x.npy", np.ones((3, 6, 5), np.uint8))
    with pytest.raises(DataError, match=r"one class.* 30 pixels"):
        read_mask(tmp_path / "x.npy", THREE, MaskEncoding(one_hot=True))


def test_16_bit_masks(tmp_path):
    labels = Labels([f"class {number}" for number in range(300)])
    numbers = np.random.default_rng(4).integers(0, 300, (6, 5)).astype(np.uint16)
    for ending in ("png", "tif"):
        cv2.imwrite(str(tmp_path / f"x.{ending}"), numbers)
        np.testing.assert_array_equal(read_mask(tmp_path / f"x.{ending}", labels), numbers)


@pytest.mark.parametrize("labels", [THREE, OVERLAPPING])
def test_one_mask_file_per_class(tmp_path, labels):
    """Files of the same class are united; files of two classes may overlap only in multilabel mode."""
    planes = np.random.default_rng(5).random((3, 6, 5)) < 0.4
    for number, plane in enumerate(planes):
        Image.fromarray(plane * np.uint8(255)).save(tmp_path / f"{number}.png")
    names = labels.names[-2:]
    files = [MaskFile(tmp_path / f"{n}.png", names[0] if n < 2 else names[1]) for n in range(3)]
    first, second = planes[0] | planes[1], planes[2]
    if labels.has_mask_channels:
        np.testing.assert_array_equal(read_masks(files, labels), [first, second])
    else:
        with pytest.raises(DataError, match=f"{int((first & second).sum())} pixels"):
            read_masks(files, labels)
        Image.fromarray((second & ~first) * np.uint8(255)).save(tmp_path / "2.png")
        np.testing.assert_array_equal(read_masks(files, labels), first + 2 * (second & ~first))


# hostile files


def png_of(width, height):
    """A complete PNG file that declares a size but holds too few pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def nifti_of(shape):
    """A NIfTI file whose header declares more voxels than it holds."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((2, 2, 2))
    header["dim"] = [3, *shape, 1, 1, 1, 1]
    header["vox_offset"] = 352
    return header.binaryblock + b"\0" * 4 + np.zeros(8, np.float32).tobytes()


def zip_bytes():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.txt", b"\0" * 10_000_000)
    return content.getvalue()


def npy_of(shape):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return content.getvalue() + b"\0" * 64


NRRD = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 20000 20000 20000\nencoding: raw\nendian: little\n\n" + b"\0" * 64
MHA = b"ObjectType = Image\nNDims = 3\nDimSize = 20000 20000 20000\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
HOSTILE = {
    "huge.png": png_of(100_000, 100_000),
    "wide.png": png_of(2_000_000_000, 2),
    "hollow.png": png_of(4000, 4000),
    "huge.nii": nifti_of((20000, 20000, 20000)),
    "huge.npy": npy_of((20000, 20000, 20000)),
    "huge.nrrd": NRRD,
    "huge.mha": MHA + b"\0" * 64,
    "negative.nii": nifti_of((-5, 4, 4)),
    "zip.png": zip_bytes(),
    "zip.nii.gz": zip_bytes(),
    "zip.npy": zip_bytes(),
    "text.tif": b"II*\0" + b"hello" * 50,
    "text.jpg": b"\xff\xd8\xff" + b"hello" * 50 + b"\xff\xd9",
    "text.dcm": b"\0" * 128 + b"DICM" + b"hello" * 50,
    "text.mha": b"hello" * 50,
}
LIMIT = 4 << 30  # bytes of address space beyond what the imported libraries use


@pytest.mark.parametrize("reader", ["image", "mask"])
def test_hostile_files_are_refused_without_using_memory(tmp_path, reader):
    """In a separate process whose memory is limited once everything is imported."""
    for name, content in HOSTILE.items():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, __file__, reader, tmp_path], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.split()) == sorted(HOSTILE)


def read_all(reader, folder):
    """Print the name of each file that is refused with an error that names it."""
    labels = Labels(["background", "a"])
    sample = folder / "sample.mha"
    saved(sample, NUMBERS[:1])
    read_image(sample)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT, taken + LIMIT))
    for name in HOSTILE:
        try:
            read_image(folder / name) if reader == "image" else read_mask(folder / name, labels)
        except DataError as error:
            print(name if name in str(error) else error, flush=True)


def test_headers_that_declare_more_than_the_file_holds(tmp_path):
    """Refused before the memory is allocated, which would be 18 GB."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((3000, 3000, 500))
    header.set_sform(np.eye(4), 1)
    content = header.binaryblock + bytes(16000)
    (tmp_path / "a.nii").write_bytes(content)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content))
    head = "NRRD0004\ntype: float\ndimension: 3\nsizes: 3000 3000 500\nencoding: gzip\nendian: little\n\n"
    (tmp_path / "c.nrrd").write_bytes(head.encode() + gzip.compress(bytes(16000)))
    for name in ("a.nii", "b.nii.gz", "c.nrrd"):
        with pytest.raises(DataError, match=r"header.* 18,000,000,000 bytes"):
            read_image(tmp_path / name)


@pytest.mark.parametrize(("ending", "line"), [("mhd", "ElementDataFile = {}"), ("nhdr", "data file: {}")])
def test_detached_pixel_files_belong_to_the_case(tmp_path, ending, line):
    (tmp_path / "in").mkdir()
    path = saved(tmp_path / f"in/a.{ending}", NUMBERS)
    (pixels,) = (file for file in (tmp_path / "in").iterdir() if file.suffix in (".raw", ".gz"))
    case = Case("a", "a", images=(path,))
    digest, stamps = data_digest([case]), file_stamps(case)
    changed = bytearray(pixels.read_bytes())
    changed[len(changed) // 2] ^= 1
    pixels.write_bytes(changed)
    assert data_digest([case]) != digest
    assert file_stamps(case) != stamps
    pixels.rename(tmp_path / pixels.name)
    path.write_text(path.read_text().replace(line.format(pixels.name), line.format(f"../{pixels.name}")))
    with pytest.raises(DataError, match="outside the folder"):
        read_image(path)


def test_damaged_headers_are_refused_whatever_the_library_raises(tmp_path):
    header = nib.Nifti1Header()
    block = bytearray(header.binaryblock)
    block[70:72] = struct.pack("<h", 999)  # an unknown number type
    (tmp_path / "a.nii").write_bytes(bytes(block) + bytes(1000))
    (tmp_path / "b.png").write_bytes(b"\x89PNG IEND")
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((((")
    for name in ("a.nii", "b.png", "c.npy"):
        for read in (read_image, lambda path: read_mask(path, TWO), number_type):
            with pytest.raises(DataError, match=name):
                read(tmp_path / name)


def test_nifti_units_are_converted_to_millimetres(tmp_path):
    for unit, side in (("micron", 500.0), ("meter", 0.0005), ("mm", 0.5)):
        volume = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([side, side, side, 1]))
        volume.header.set_xyzt_units(unit)
        nib.save(volume, tmp_path / f"{unit}.nii")
        assert read_image(tmp_path / f"{unit}.nii")[1] == pytest.approx((0.5, 0.5, 0.5))
        np.testing.assert_allclose(geometry_of(tmp_path / f"{unit}.nii", "").affine, np.diag([0.5, 0.5, 0.5, 1]))


def test_image_with_and_mask_without_geometry_are_refused(tmp_path):
    """The first axis of a DICOM or MetaImage image runs from left to right, that of a PNG from top to bottom."""
    side = np.zeros((6, 6), np.uint8)
    side[1, :3] = 1
    Image.fromarray(side).save(tmp_path / "mask.png")
    image = saved(tmp_path / "image.mha", side.astype(np.int16) * 100, spacing=(1.0, 1.0), origin=(0.0, 0.0))
    with pytest.raises(DataError, match=r"RAS.*mask\.png"):
        read_files(Case("a", "a", images=(image,), masks=(MaskFile(tmp_path / "mask.png"),)), TWO)
    np.save(tmp_path / "mask.npy", np.zeros((4, 4, 4), np.uint8))
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4)), np.diag([-1, 1, 1, 1])), tmp_path / "las.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4)), tmp_path / "ras.nii")
    mask = (MaskFile(tmp_path / "mask.npy"),)
    assert read_files(Case("a", "a", images=(tmp_path / "ras.nii",), masks=mask), TWO).mask is not None
    with pytest.raises(DataError, match=r"RAS.*mask\.npy"):
        read_files(Case("a", "a", images=(tmp_path / "las.nii",), masks=mask), TWO)


def test_16_bit_colour_masks_keep_their_values(tmp_path):
    """Pillow would reduce them to 8 bits, so that 2 becomes 0."""
    numbers = NUMBERS[0].astype(np.uint16)
    cv2.imwrite(str(tmp_path / "mask.png"), np.repeat(numbers[..., None], 3, -1))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", THREE), numbers)


def test_object_masks_need_a_background_class(tmp_path):
    Image.fromarray(np.eye(6, dtype=np.uint8)).save(tmp_path / "car.png")
    masks = [MaskFile(tmp_path / "car.png", "car")]
    with pytest.raises(DataError, match=r"`names: \[background, car, bus\]`"):
        read_masks(masks, Labels(["car", "bus"]))
    assert read_masks(masks, Labels(["background", "car"])).max() == 1


def test_broken_links_are_named(tmp_path):
    (tmp_path / "x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"x\.png.* not exist"):
        read_image(tmp_path / "x.png")


def test_formats_are_recognised_by_their_endings(tmp_path):
    assert format_name(Path("a.B.NII.GZ")) == "NIfTI"
    assert format_name(Path("a.txt")) is None
    assert not is_image(tmp_path)
    endings = [ending for file_format in FORMATS.values() for ending in file_format.endings]
    assert len(endings) == len(set(endings))


# optional packages

# formats that libraries at hand read


@pytest.mark.parametrize("ending", ["ppm", "pgm", "pbm", "jp2", "webp"])
def test_pictures_of_further_formats(tmp_path, ending):
    grey = np.random.default_rng(0).integers(0, 256, (12, 10)).astype(np.uint8)
    stored = {"pgm": grey, "pbm": (grey > 127) * np.uint8(255)}.get(ending, np.stack([grey, 255 - grey, grey // 2], -1))
    if ending == "jp2":
        Image.fromarray(stored).save(tmp_path / "x.jp2", irreversible=False)
    else:
        assert cv2.imwrite(str(tmp_path / f"x.{ending}"), stored[..., ::-1] if stored.ndim == 3 else stored)
    with Image.open(tmp_path / f"x.{ending}") as picture:
        expected = np.atleast_3d(np.asarray(picture.convert("L" if stored.ndim == 2 else "RGB"))) / 255
    image, spacing = read_image(tmp_path / f"x.{ending}")
    np.testing.assert_allclose(image, np.moveaxis(expected, -1, 0), atol=1e-6)
    assert spacing == (1.0, 1.0)


@pytest.mark.parametrize("largest", [1, 2, 100, 255])
def test_grey_maps_as_masks_are_not_scaled_by_their_largest_value(tmp_path, largest):
    mask = np.random.default_rng(0).integers(0, min(largest, 2) + 1, (12, 10)).astype(np.uint8)
    (tmp_path / "x.pgm").write_bytes(f"P5 10 12 {largest}\n".encode() + mask.tobytes())
    np.testing.assert_array_equal(read_mask(tmp_path / "x.pgm", THREE), mask)


def test_bitmaps_as_masks_are_1_where_they_are_black(tmp_path):
    (tmp_path / "x.pbm").write_text("P1 3 2\n1 0 0\n0 1 1\n")
    np.testing.assert_array_equal(read_mask(tmp_path / "x.pbm", TWO), [[1, 0, 0], [0, 1, 1]])


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("kind", ["rgba.png", "la.png", "rgba.tif"])
def test_masks_of_transparency_alone_are_refused(tmp_path, kind, colour):
    name, ending = kind.split(".")
    array = np.full((8, 8, 2 if name == "la" else 4), colour, np.uint8)
    array[..., -1] = np.arange(8) * 30
    path = tmp_path / f"x.{ending}"
    if ending == "tif":
        tifffile.imwrite(path, array, photometric="rgb", extrasamples=["unassalpha"])
    else:
        Image.fromarray(array, mode="LA" if name == "la" else "RGBA").save(path)
    with pytest.raises(DataError, match="only the transparency differs"):
        read_mask(path, TWO)


@pytest.mark.parametrize("ending", ["mgz", "mgh", "hdr"])
def test_mgh_and_analyze_match_nibabel(tmp_path, ending):
    array = np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(np.int16)
    affine = np.array([[0, 2.0, 0, 1], [-1.5, 0, 0, 2], [0, 0, 3.0, 4], [0, 0, 0, 1]])
    if ending == "hdr":
        nib.save(nib.Spm2AnalyzeImage(array, np.diag([-2.0, 1.5, 3.0, 1.0])), tmp_path / "x.img")
    else:
        nib.save(nib.MGHImage(array.astype(np.float32), affine), tmp_path / f"x.{ending}")
    expected = nib.as_closest_canonical(nib.load(tmp_path / f"x.{ending}"))
    image, spacing = read_image(tmp_path / f"x.{ending}")
    np.testing.assert_array_equal(image[0], expected.get_fdata())
    assert spacing == pytest.approx(expected.header.get_zooms())
    np.testing.assert_array_equal(read_mask(tmp_path / f"x.{ending}", Labels([str(n) for n in range(200)])), image[0])


def test_pixels_beside_an_analyze_header_belong_to_the_case(tmp_path):
    nib.save(nib.Spm2AnalyzeImage(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / "x.img")
    case = Case("x", "x", images=(tmp_path / "x.hdr",))
    before = data_digest([case])
    nib.save(nib.Spm2AnalyzeImage(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "x.img")
    assert data_digest([case]) != before


def test_mat_files(tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (6, 7)).astype(np.uint8)
    scipy.io.savemat(tmp_path / "x.mat", {"anything": mask, "note": "text"})
    np.testing.assert_array_equal(read_mask(tmp_path / "x.mat", TWO), mask)
    np.testing.assert_array_equal(read_image(tmp_path / "x.mat")[0][0], mask)
    scipy.io.savemat(tmp_path / "y.mat", {"a": mask, "b": mask})
    with pytest.raises(DataError, match=r"a single array of numbers, got a, b; save the array to use"):
        read_mask(tmp_path / "y.mat", TWO)


def test_text_files_named_seg_are_no_dicom(tmp_path):
    """The Berkeley segmentation data set has text files with this ending."""
    (tmp_path / "x.seg").write_text("format ascii cr")
    assert format_name(tmp_path / "x.seg") is None


@pytest.mark.parametrize("shape", [(20, 30, 3), (9, 20, 30, 2)])
def test_arrays_with_the_channels_last_are_refused(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=r"last axis looks like channels; save numpy\.moveaxis\(array, -1, 0\)"):
        read_image(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("shape", "advice"), [((2, 20, 30), "write `one_hot: true`"), ((20, 30, 2), r"numpy\.argmax\(mask, -1\)")]
)
def test_one_hot_masks_are_recognised(tmp_path, shape, advice):
    np.save(tmp_path / "image.npy", np.zeros((20, 30), np.float32))
    np.save(tmp_path / "mask.npy", np.zeros(shape, np.uint8))
    case = Case("x", "x", images=(tmp_path / "image.npy",), masks=(MaskFile(tmp_path / "mask.npy"),))
    with pytest.raises(DataError, match=f"one channel per class, .*{advice}"):
        read_files(case, TWO)


@pytest.mark.parametrize(("photometric", "model"), [(5, "CMYK"), (6, "YCbCr"), (8, r"CIE L\*a\*b\*")])
def test_colour_models_other_than_rgb_are_refused(tmp_path, photometric, model):
    channels = 4 if photometric == 5 else 3
    array = np.random.default_rng(0).integers(0, 256, (16, 16, channels)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric=photometric)
    with pytest.raises(DataError, match=rf"got {model}; convert it"):
        read_image(tmp_path / "x.tif")


def test_ycbcr_inside_jpeg_is_converted_by_its_decoder(tmp_path):
    array = np.zeros((32, 32, 3), np.uint8)
    array[..., 0] = 200
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", compression="jpeg")
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert file.pages[0].photometric == 6
    np.testing.assert_allclose(read_image(tmp_path / "x.tif")[0][:, 5, 5] * 255, [200, 0, 0], atol=4)


def test_an_animated_png_is_its_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200, 90)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "x.png")[0] * 255).round().min() == 10
    assert (read_image(tmp_path / "x.png")[0] * 255).round().max() == 10


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_of_few_bits_is_scaled_by_its_own_range(tmp_path, bits, white_is_zero):
    values = np.arange(64).reshape(8, 8) % 2**bits
    per_byte = 8 // bits
    packed = np.zeros((8, 8 // per_byte), np.uint8)
    for position in range(per_byte):
        packed |= (values[:, position::per_byte] << (8 - bits * (position + 1))).astype(np.uint8)
    entries = [
        (256, 4, 8), (257, 4, 8), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1),
        (273, 4, 8 + 2 + 12 * 9 + 4), (277, 3, 1), (278, 4, 8), (279, 4, packed.size),
    ]  # fmt: skip
    content = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    for tag, kind, value in entries:
        content += struct.pack("<HHII", tag, kind, 1, value)
    (tmp_path / "x.tif").write_bytes(content + struct.pack("<I", 0) + packed.tobytes())
    expected = values / (2**bits - 1)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif")[0][0], 1 - expected if white_is_zero else expected)


def test_one_bit_palette_tiff(tmp_path):
    picture = Image.fromarray(np.eye(8, dtype=np.uint8), mode="P")
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.save(tmp_path / "x.tif", bits=1)
    image = read_image(tmp_path / "x.tif")[0] * 255
    np.testing.assert_allclose(image[:, 0, 0], [200, 100, 50], atol=1e-4)
    np.testing.assert_allclose(image[:, 0, 1], [10, 20, 30], atol=1e-4)


OPTIONAL = ("SimpleITK", "pydicom", "highdicom", "nibabel", "tifffile", "imagecodecs", "pycocotools")
HIDE = f"import sys\nfor name in {OPTIONAL}: sys.modules[name] = None\n"
TRAIN = """\
labels: {names: [background, vessel]}
data: {name: pairs, images: images, masks: masks}
split: {name: kfold, folds: 3}
model: {name: unet, widths: [4, 8]}
loss: dice
optimizer: {name: adamw, lr: 0.001}
train: {steps: 2, validate_every: {steps: 2}}
"""


def run_without_optional_packages(folder, code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", HIDE + code, *arguments], capture_output=True, text=True, check=False, cwd=folder
    )


def test_training_on_png_needs_no_optional_package(tmp_path):
    for number in range(6):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 2 if folder == "masks" else 255, (16, 16), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "x.yaml").write_text(TRAIN)
    code = "from segkit.cli import main\nsys.argv = ['segkit', 'train', '--config', 'x.yaml']\nmain()"
    done = run_without_optional_packages(tmp_path, code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_common_formats_need_no_optional_package(tmp_path):
    pixels = np.random.default_rng(8).integers(0, 2, (12, 10), np.uint8)
    for ending in ("png", "jpg", "bmp", "gif"):
        Image.fromarray(pixels).save(tmp_path / f"x.{ending}")
    np.save(tmp_path / "x.npy", pixels)
    np.savez(tmp_path / "x.npz", pixels)
    code = (
        "import segkit.data\nfrom pathlib import Path\nfrom segkit import Labels\n"
        "from segkit.data.readers import read_image, read_mask\nfrom segkit.data.mask_encoding import MaskEncoding\n"
        "labels = Labels(['background', 'a'])\n"
        "for file in sorted(Path().iterdir()):\n"
        "    code = MaskEncoding(threshold=128) if file.suffix == '.jpg' else MaskEncoding()\n"
        "    assert read_image(file)[0].shape[1:] == read_mask(file, labels, code).shape == (12, 10), file\n"
        "    print(file)"
    )
    done = run_without_optional_packages(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["x.bmp", "x.gif", "x.jpg", "x.npy", "x.npz", "x.png"]


@pytest.mark.parametrize(
    ("ending", "package", "extra"),
    [
        ("nii.gz", "nibabel", "medical"),
        ("nrrd", "SimpleITK", "medical"),
        ("mha", "SimpleITK", "medical"),
        ("dcm", "pydicom", "medical"),
        ("tif", "tifffile", "tiff"),
    ],
)
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, ending, package, extra):
    """Not as a damaged file: images, masks and headers give the same error, and the exit code of usage errors."""
    path = tmp_path / f"x.{ending}"
    if ending == "tif":
        tifffile.imwrite(path, NUMBERS[0])
    else:
        saved(path, NUMBERS[:1])
    monkeypatch.setitem(sys.modules, package, None)
    readers = [read_image, lambda path: read_mask(path, THREE)]
    readers += [] if ending == "tif" else [lambda path: geometry_of(path, "x")]  # TIFF stores no geometry
    readers += [] if ending == "dcm" else [number_type]  # unknown for DICOM
    for read in readers:
        with pytest.raises(MissingExtra, match=rf"{package}.* pip install 'segkit-trainer\[{extra}\]'") as missing:
            read(path)
        assert missing.value.exit_code == 2


def test_compressed_tiff_needs_imagecodecs(tmp_path, monkeypatch):
    for compression in (None, "lzw"):
        tifffile.imwrite(tmp_path / f"{compression}.tif", NUMBERS[0], compression=compression)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    np.testing.assert_array_equal(read_mask(tmp_path / "None.tif", THREE), NUMBERS[0])
    with pytest.raises(MissingExtra, match=r"imagecodecs.*segkit-trainer\[tiff\]"):
        read_mask(tmp_path / "lzw.tif", THREE)


def test_coco_annotations_need_pycocotools(tmp_path, monkeypatch):
    from support.layouts import LAYOUTS

    written = LAYOUTS["coco"](tmp_path)
    source = SOURCES["coco"](labels=Labels(["background", "car", "tree"], ignore_index=255), **written.options)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "pycocotools.mask", raising=False)
    with pytest.raises(MissingExtra, match=r"pycocotools.*segkit-trainer\[coco\]"):
        source.read(source.cases[0])


def test_a_missing_package_ends_a_command_with_one_sentence(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            saved(tmp_path / folder / f"{number}.nii.gz", NUMBERS)
    code = "from segkit.cli import main\nsys.argv = ['segkit', 'data', 'inspect', '.']\nmain()"
    done = run_without_optional_packages(tmp_path, code)
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, output
    assert "segkit-trainer[medical]" in output
    assert "Traceback" not in output


if __name__ == "__main__":
    read_all(sys.argv[1], Path(sys.argv[2]))
