"""Hostile and damaged files that once crashed a reader, hung it or cost much more memory than they hold."""

import gzip
import io
import json
import os
import socket
import struct
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from segkit import Labels
from segkit.data import SOURCES, Case, DataError, RawCase
from segkit.data.cases import MaskFile, file_stamps
from segkit.data.documents import read_json
from segkit.data.inspection.case_summaries import examine
from segkit.data.preprocess import Preprocess
from segkit.data.readers import geometry_of, number_type, read_files, read_image, read_mask
from segkit.data.splits import lists_split

LABELS = Labels(["background", "a", "b"], ignore_index=255)


def dicom(path, **fields):
    """A DICOM file of 2 x 2 pixels whose header says something else."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = pydicom.uid.generate_uid()
    header.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    header.Rows = header.Columns = 2
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.SamplesPerPixel, header.PixelRepresentation = 7, 1, 0
    header.PhotometricInterpretation, header.PixelData = "MONOCHROME2", bytes(4)
    for name, value in fields.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)
    return path


def test_a_small_dicom_file_costs_little_memory(tmp_path):
    """Whether its header declares many pixels, or an element many bytes, which GDCM would allocate first."""
    dicom(tmp_path / "honest.dcm")
    dicom(tmp_path / "pixels.dcm", Rows=32768, Columns=32768)
    content = (tmp_path / "honest.dcm").read_bytes()
    element = struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 2_000_000_000)
    (tmp_path / "element.dcm").write_bytes(content + element)
    code = (
        "from pathlib import Path; from segkit.data import DataError; from segkit.data.readers import read_image\n"
        f"assert read_image(Path({str(tmp_path)!r}) / 'honest.dcm')[0].shape == (1, 2, 2)\n"
        "before = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "for name, text in (('pixels', 'declares 1,073,741,824 bytes'), ('element', 'declares 2,000,000,000 bytes')):\n"
        f"    try: read_image(Path({str(tmp_path)!r}) / (name + '.dcm'))\n"
        "    except DataError as error: assert text in str(error), error\n"
        "    else: raise AssertionError(name)\n"
        "after = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "assert after - before < 50_000, after - before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_messages_on_dicom_files_quote_no_field(tmp_path):
    path = dicom(tmp_path / "a.dcm", Modality="Jane Doe")
    content = path.read_bytes()
    place = content.index(b"\x28\x00\x10\x00US")
    path.write_bytes(content[:place] + content[place + 10 :])  # without its number of rows
    with pytest.raises(DataError, match="of the modality unknown holds no image") as caught:
        read_image(path)
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["NDims = 1e9", "NDims = -1", "NDims = 3\nNDims = 99999", "NDims = 3\nOffset = 1 2 3 4"]
)
def test_headers_of_metaimage_are_checked_before_itk_reads_them(tmp_path, key):
    """ITK takes the number of axes as it is, and writes beyond its arrays."""
    path = tmp_path / "a.mha"
    head = f"ObjectType = Image\n{key}\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    path.write_bytes(head.encode() + bytes(8))
    for read in (
        read_image,
        number_type,
        lambda path: geometry_of(path, str(path)),
        lambda path: read_mask(path, LABELS),
    ):
        with pytest.raises(DataError, match=r"a\.mha: .*(NDims|Offset)"):
            read(path)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_any_header_that_names_files_outside_its_folder_is_refused(tmp_path, ending):
    (tmp_path / "secret.raw").write_bytes(bytes(8))
    (tmp_path / "in").mkdir()
    heads = {
        ".mha": "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile : ../secret.raw\n",
        ".nrrd": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: ../secret.raw\n\n",
    }
    path = tmp_path / f"in/a{ending}"
    path.write_text(heads[ending])
    with pytest.raises(DataError, match="outside the folder"):
        read_image(path)
    path.write_text(heads[ending].replace("../secret.raw", "x" * 3000))
    assert file_stamps(Case("a", "a", images=(path,)))
    with pytest.raises(DataError, match="does not exist"):
        read_image(path)


def _npz_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            content, {"descr": "<f4", "fortran_order": False, "shape": (40_000, 40_000)}
        )
        archive.writestr("image.npy", content.getvalue() + bytes(100))


def _mat_bomb(path):
    savemat(path, {"a": np.zeros((40, 40))})
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<iiii", 5, 8, 40, 40))
    struct.pack_into("<ii", content, place + 8, 40_000, 40_000)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npz", _npz_bomb, r"image declares 6,400,000,000 bytes, but the archive holds"),
        ("a.mat", _mat_bomb, r"declares 1,600,000,000 bytes of pixels"),
    ],
)
def test_declared_sizes_are_compared_with_the_file(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_a_picture_of_one_colour_is_within_the_bounds(tmp_path, name):
    """Formats that compress a single colour to almost nothing stay readable up to 64 MiB of pixels."""
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(tmp_path / name, lossless=True)
    assert read_image(tmp_path / name)[0].shape[1:] == (4000, 4000)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.zeros((4, 4)), "not invertible"),
        (np.full((4, 4), np.nan), "finite numbers in the affine"),
        (np.diag([1e-20, 1, 1, 1]), r"sides of 1e-06 to 1e\+06 mm, got 1e-20, 1, 1 mm"),
        (np.diag([1, 1e9, 1, 1]), r"sides of 1e-06 to 1e\+06 mm"),
    ],
)
def test_impossible_affines_are_refused(tmp_path, affine, message):
    volume = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    volume.header.structarr["sform_code"], volume.header.structarr["qform_code"] = 1, 0
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        volume.header.structarr[name] = affine[row]
    path = tmp_path / "a.nii"
    path.write_bytes(volume.header.binaryblock + bytes(4) + bytes(60))
    case = Case("a", "a", images=(path,), masks=(MaskFile(path),))
    for read in (read_image, lambda path: geometry_of(path, str(path)), lambda _path: read_files(case, LABELS)):
        with pytest.raises(DataError, match=message):
            read(path)


def test_resampling_to_more_pixels_than_memory_is_refused():
    fitted = Preprocess(1, 3, "none", (), (), (0.0,), (1.0,), (1e-4, 1.0, 1.0), 1)
    raw = RawCase(np.zeros((1, 500, 500, 10), np.float32), None, (1.0, 1.0, 1.0))
    with pytest.raises(DataError, match=r"at most 2,147,483,648 pixels .* got 25,000,000,000"):
        fitted.resample(raw)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "pipe.csv")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "socket.npy"))
    (tmp_path / "device.tif").symlink_to("/dev/zero")
    for name, kind in (("pipe.png", "a named pipe"), ("socket.npy", "a socket"), ("device.tif", "a device")):
        for read in (read_image, number_type, lambda path: read_mask(path, LABELS)):
            with pytest.raises(DataError, match=f"{name}: expected a regular file, got {kind}"):
                read(tmp_path / name)
    with pytest.raises(DataError, match="named pipe"):
        read_json(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="named pipe"):
        SOURCES["manifest"](labels=LABELS, file=tmp_path / "pipe.csv")
    (tmp_path / "t.csv").write_text("image,mask\npipe.png,pipe.png\n")
    source = SOURCES["manifest"](labels=LABELS, file=tmp_path / "t.csv")
    with pytest.raises(DataError, match="named pipe"):
        source.read(source.cases[0])
    assert "named pipe" in examine(source, source.cases[0], LABELS).errors[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "depth of at most 500"),
        (b'{"a":' * 100_000, "depth of at most 500"),
        (b'{"train": [' + b"1" * 5000 + b"]}", "numbers of at most 4300 digits"),
    ],
)
def test_json_is_bounded(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match=message):
        lists_split([Case("a", "a")], file=tmp_path / "a.json")


@pytest.mark.parametrize(
    "name", ["../../out", "/etc/x", "a/../../x", "a\0b", "a\nb", "\x1b[2J", "x" * 5000, "..", "a//b"]
)
def test_names_of_cases_cannot_leave_a_folder_of_outputs(tmp_path, name):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "t.json").write_text(json.dumps([{"case": name, "image": "x.png", "mask": "x.png"}]))
    with pytest.raises(DataError, match=r"case .*: expected (a name|names)") as caught:
        SOURCES["manifest"](labels=LABELS, file=tmp_path / "t.json")
    assert len(str(caught.value)) < 600
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask\nx.png,x.png,x.png\n", r"entry 1: expected at most 2 cells, one per heading, got 3"),
        ("image,image\nx.png,x.png\n", r"two columns with the heading image"),
        ("image,mask\n" + "x" * 5000 + ",x.png\n", r"names of at most 255 bytes"),
        ("image,mask\n" + "x" * 200_000 + ",x.png\n", r"cells of at most \d+ characters"),
        ("image,mask\nx\0.png,x.png\n", r"control characters|NUL"),
        ("\n", "is empty"),
    ],
)
def test_tables_of_cases_are_bounded(tmp_path, text, message):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        SOURCES["manifest"](labels=LABELS, file=tmp_path / "t.csv")


def _read_first(build, **options):
    source = build(**options)
    return source.read(source.cases[0])


NAN = float("nan")
SIZE = [9, 7]


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[1, 1, 5, NAN, 5, 5]], "finite number"),
        ([[1, 1, 1e8, 1, 5, 5]], r"at most 90 pixels outside of the picture of 7 x 9 pixels"),
        ([[1, 1, 5, 1, 5, 5, 1]], "pairs of coordinates, got 7 numbers"),
        ([[0, 0, 60, 60] * 100], "edges of at most 1663 pixels"),
        ({"size": SIZE, "counts": [10, 20]}, "add up to 30 pixels, not to 63"),
        ({"size": SIZE, "counts": [-5, 68]}, "counts of whole numbers"),
        ({"size": SIZE, "counts": [NAN]}, "counts of whole numbers"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, r"expected the size \[9, 7\]"),
        ({"size": [1e9, 7], "counts": [63]}, "size of two numbers"),
        ({"size": SIZE}, "counts of whole numbers"),
        ({"counts": [63]}, "size of two numbers"),
        ({"size": SIZE, "counts": "o" * 50}, "numbers of at most 8 characters"),
        ({"size": SIZE, "counts": "P"}, "end within a number"),
        ({"size": SIZE, "counts": "\x7f\n"}, "compressed text"),
    ],
)
@pytest.mark.filterwarnings("ignore:__array__")
def test_outlines_are_checked_before_they_are_drawn(tmp_path, outline, message):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "x.png")
    content = {
        "images": [{"id": 1, "file_name": "x.png"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": outline}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        _read_first(SOURCES["coco"], labels=LABELS, images=tmp_path, annotations=tmp_path / "a.json")


@pytest.mark.filterwarnings("ignore:__array__")
def test_compressed_runs_are_those_of_pycocotools(tmp_path):
    """Many runs with long numbers, against the encoder of the library."""
    plane = np.random.default_rng(0).random((200, 300)) < np.linspace(0, 0.02, 300)
    runs = coco_mask.encode(np.asfortranarray(plane.astype(np.uint8)))
    Image.fromarray(np.zeros(plane.shape, np.uint8)).save(tmp_path / "x.png")
    content = {
        "images": [{"id": 1, "file_name": "x.png"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": {**runs, "counts": runs["counts"].decode()}}
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = SOURCES["coco"](labels=LABELS, images=tmp_path, annotations=tmp_path / "a.json")
    np.testing.assert_array_equal(source.read(source.cases[0]).mask == 1, plane)


def test_gzipped_volumes_may_hold_a_single_value(tmp_path):
    """Zeros are compressed by a factor of 1000, which is within the bound of deflate."""
    volume = nib.Nifti1Image(np.zeros((100, 200, 200), np.uint8), np.eye(4))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(volume.to_bytes(), 9))
    assert (tmp_path / "a.nii.gz").stat().st_size < 5000
    assert read_image(tmp_path / "a.nii.gz")[0].shape == (1, 100, 200, 200)
