"""Where voxels lie: tilted slices, series with faults, segmentations of a part, and oblique volumes."""

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, RTDoseStorage, generate_uid

from segkit import Labels
from segkit.data import Case, DataError, MaskFile
from segkit.data.formats import format_name
from segkit.data.inspection.case_summaries import examine
from segkit.data.inspection.checks import find_problems
from segkit.data.readers import check_geometry, read_files, read_image, read_mask

LABELS = Labels(["background", "a"])
AXIAL = [1, 0, 0, 0, 1, 0]
STUDY, SERIES, FRAME = generate_uid(), generate_uid(), generate_uid()


def _slice(path, *, position=(0.0, 0.0, 0.0), orientation=AXIAL, spacing=(0.5, 0.5), pixels=None, number=1, **fields):
    """Write a CT slice."""
    pixels = np.arange(48, dtype=np.int16).reshape(6, 8) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = STUDY, SERIES, FRAME
    dataset.Modality, dataset.PatientName, dataset.PatientID, dataset.StudyID = "CT", "x", "x", "1"
    dataset.PatientBirthDate = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.PatientSex, dataset.ReferringPhysicianName, dataset.SeriesNumber = "", "", 1
    dataset.InstanceNumber, dataset.PositionReferenceIndicator = number, ""
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(orientation)
    dataset.PixelSpacing, dataset.SliceThickness = list(spacing), 2.0
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def _series(folder, positions, **fields):
    folder.mkdir()
    for number, position in enumerate(positions):
        pixels = np.full((6, 8), number, np.int16)
        _slice(folder / f"{number:02d}.dcm", position=position, pixels=pixels, number=number + 1, **fields)
    return folder


@pytest.mark.parametrize("degrees", [0, 30, 60, 90])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tilted_slice_keeps_its_spacing(tmp_path, degrees, axis):
    turn = np.deg2rad(degrees)
    matrix = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    matrix[first, first] = matrix[second, second] = np.cos(turn)
    matrix[first, second], matrix[second, first] = -np.sin(turn), np.sin(turn)
    orientation = [*matrix[:, 0], *matrix[:, 1]]
    image, spacing = read_image(_slice(tmp_path / "x.dcm", orientation=orientation, spacing=(0.5, 0.7)))
    pixels = np.arange(48).reshape(6, 8)
    assert sorted(spacing) == pytest.approx([0.5, 0.7])  # rows are 0.5 apart, columns 0.7
    along_columns = [side for side, length in zip(image.shape[1:], spacing, strict=True) if length > 0.6]
    assert along_columns == [8]
    np.testing.assert_array_equal(np.sort(image.ravel()), np.sort(pixels.ravel()))


@pytest.mark.parametrize(
    ("heights", "after"), [([0, 2, 3, 4], 1), ([0, 2, 3], 1), ([0, 1, 2, 4], 3), ([0, 1, 3], 2), ([0, 1, 1, 2], 2)]
)
def test_a_missing_or_repeated_slice_is_named(tmp_path, heights, after):
    folder = _series(tmp_path / "series", [(0, 0, height) for height in heights])
    with pytest.raises(DataError, match=rf"equal distances of 1 mm, got \d mm after slice {after} of {len(heights)}"):
        read_image(folder)


def test_a_sheared_series_is_refused(tmp_path):
    folder = _series(tmp_path / "series", [(0, 0.2 * height, height) for height in range(4)])
    with pytest.raises(
        DataError, match=r"slice 2 of 4 is shifted by 0\.2 mm .*\(11 degrees, as with a tilted gantry\)"
    ):
        read_image(folder)
    tilted = [1, 0, 0, 0, np.cos(0.2), np.sin(0.2)]  # slices that are tilted but lie one above the other
    normal = np.cross(tilted[:3], tilted[3:])
    read_image(_series(tmp_path / "tilted", [tuple(2 * normal * step) for step in range(4)], orientation=tilted))


def test_tiles_of_a_whole_slide_are_no_slices(tmp_path):
    tiles = np.zeros((4, 6, 8), np.uint8)
    options = {"NumberOfFrames": 4, "TotalPixelMatrixColumns": 16, "TotalPixelMatrixRows": 12, "Modality": "SM"}
    path = _slice(tmp_path / "x.dcm", pixels=tiles, **options)
    with pytest.raises(DataError, match=r"got 4 tiles of a whole slide of 16 x 12 pixels"):
        read_image(path)


@pytest.mark.parametrize("kind", ["<u4", "<u2", "<i2"])
def test_big_endian_pixels_are_those_of_pydicom(tmp_path, kind):
    """Dose files hold 32 bits per pixel; both byte orders have to give the same dose."""
    pixels = (np.arange(3 * 6 * 8).reshape(3, 6, 8) * (70_000 if kind == "<u4" else 100)).astype(kind)
    is_dose = kind == "<u4"
    fields = {"NumberOfFrames": 3, "GridFrameOffsetVector": [0.0, 2.0, 4.0]}
    if is_dose:
        fields |= {"Modality": "RTDOSE", "DoseGridScaling": 0.001, "SOPClassUID": RTDoseStorage}
    little = _slice(tmp_path / "little.dcm", pixels=pixels, **fields)
    dataset = pydicom.dcmread(little)
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(tmp_path / "big.dcm", dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    expected = pydicom.dcmread(tmp_path / "big.dcm").pixel_array * (0.001 if is_dose else 1)
    image, _spacing = read_image(tmp_path / "big.dcm")
    np.testing.assert_allclose(np.sort(image.ravel()), np.sort(expected.ravel()), rtol=1e-6)
    np.testing.assert_array_equal(image, read_image(little)[0])


def _segmentation(path, files, frames, planes):
    """Write a DICOM segmentation of some slices. planes: bool [N, rows, columns], one per frame."""
    sources = [pydicom.dcmread(files[frame]) for frame in frames]
    code = pydicom.sr.codedict.codes.SCT.Tissue
    description = highdicom.seg.SegmentDescription(1, "a", code, code, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
    highdicom.seg.Segmentation(
        source_images=sources, pixel_array=planes, segmentation_type="BINARY", segment_descriptions=[description],
        series_instance_uid=generate_uid(), series_number=2, sop_instance_uid=generate_uid(), instance_number=1,
        manufacturer="x", manufacturer_model_name="x", software_versions="1", device_serial_number="1",
        omit_empty_frames=False,
    ).save_as(path)  # fmt: skip
    return path


@pytest.mark.parametrize("frames", [[0, 1, 2], [4, 5, 6], [7, 8, 9], [5], list(range(10))])
def test_a_segmentation_of_some_slices_is_0_in_the_others(tmp_path, frames):
    folder = _series(tmp_path / "series", [(0, 0, 2.0 * height) for height in range(10)])
    planes = np.random.default_rng(0).random((len(frames), 6, 8)) > 0.5
    mask_file = _segmentation(tmp_path / "x.dcm", sorted(folder.iterdir()), frames, planes)
    case = Case("x", "x", images=(folder,), masks=(MaskFile(mask_file),))
    raw = read_files(case, LABELS)
    assert raw.mask.shape == raw.image.shape[1:] == (8, 6, 10)
    # DICOM's axes point to the left and to the back, those of RAS to the right and to the front
    expected = np.zeros((10, 6, 8), bool)
    expected[frames] = planes
    np.testing.assert_array_equal(raw.mask, expected.transpose(2, 1, 0)[::-1, ::-1])

    class One:
        cases = (case,)

        def read(self, case):
            return read_files(case, LABELS)

    assert examine(One(), case, LABELS).geometry_error is None


def test_a_segmentation_beside_the_series_is_refused(tmp_path):
    folder = _series(tmp_path / "series", [(0, 0, 2.0 * height) for height in range(6)])
    other = _series(tmp_path / "other", [(0, 0, 1.0 + 2.0 * height) for height in range(6)])
    mask_file = _segmentation(tmp_path / "x.dcm", sorted(other.iterdir()), [1, 2], np.ones((2, 6, 8), bool))
    with pytest.raises(DataError, match="expected its slices to be slices of"):
        read_files(Case("x", "x", images=(folder,), masks=(MaskFile(mask_file),)), LABELS)


def test_one_dicom_picture_and_its_segmentation(tmp_path):
    file = _slice(tmp_path / "image.dcm")
    plane = np.random.default_rng(0).random((1, 6, 8)) > 0.5
    mask_file = _segmentation(tmp_path / "mask.dcm", [file], [0], plane)
    raw = read_files(Case("x", "x", images=(file,), masks=(MaskFile(mask_file),)), LABELS)
    np.testing.assert_array_equal(raw.mask, plane[0].T[::-1, ::-1])
    np.testing.assert_array_equal(raw.image[0], np.arange(48).reshape(6, 8).T[::-1, ::-1])


def test_which_folders_are_series(tmp_path):
    folder = _series(tmp_path / "series", [(0, 0, height) for height in range(3)])
    for name in ("README.txt", "Thumbs.db", "a preview.jpg", "00_first.txt", ".hidden"):
        (folder / name).write_text("no DICOM")
    assert format_name(folder) == "DICOM series"
    assert read_image(folder)[0].shape == (1, 8, 6, 3)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        _slice(pictures / f"{number}.dcm", SeriesInstanceUID=generate_uid())
    assert format_name(pictures) is None


def _oblique(path, array, noise=0.0):
    half = np.sqrt(0.5)
    affine = np.array([[half, -half, 0, 1], [half, half, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    affine[:2, :2] += noise * np.array([[1, -1], [-1, 1]])
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("noise", [1e-7, -1e-7])
def test_image_and_mask_at_45_degrees_stay_together(tmp_path, noise):
    """Which axis is closest to right or front is a tie, which rounding errors in the headers must not decide."""
    array = np.random.default_rng(0).integers(0, 2, (5, 5, 5)).astype(np.uint8)
    image, mask = _oblique(tmp_path / "image.nii", array), _oblique(tmp_path / "mask.nii", array, noise)
    raw = read_files(Case("x", "x", images=(image,), masks=(MaskFile(mask),)), LABELS)
    np.testing.assert_array_equal(raw.image[0], raw.mask)


def test_a_mask_with_swapped_axes_is_refused_though_its_corners_agree(tmp_path):
    array = np.zeros((5, 5, 5), np.uint8)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "image.nii")
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)[[1, 0, 2, 3]]), tmp_path / "same.nii")
    check_geometry(tmp_path / "image.nii", tmp_path / "same.nii", "x")  # the same voxels after reorientation
    sheared = np.eye(4)
    sheared[:2, :2] = [[0.6, 0.8], [0.8, -0.6]]  # reorientation exchanges the axes, and the first voxel stays
    nibabel.save(nibabel.Nifti1Image(array, sheared), tmp_path / "other.nii")
    with pytest.raises(DataError, match="in another orientation"):
        check_geometry(tmp_path / "image.nii", tmp_path / "other.nii", "x")


def test_masks_saved_with_a_slope_are_whole_numbers(tmp_path):
    """nibabel scales whole numbers that a user saved as uint16 to 2.9999999993."""
    values = np.array([0, 1, 2, 3], float).reshape(2, 2, 1)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.uint16)
    nibabel.save(image, tmp_path / "x.nii")
    stored = np.asanyarray(nibabel.load(tmp_path / "x.nii").dataobj)
    assert not np.array_equal(stored, values)
    labels = Labels(["background", "a", "b", "c"])
    np.testing.assert_array_equal(read_mask(tmp_path / "x.nii", labels), values)
    nibabel.save(nibabel.Nifti1Image(values + 0.01, np.eye(4)), tmp_path / "y.nii")
    with pytest.raises(DataError, match="whole class numbers"):
        read_mask(tmp_path / "y.nii", labels)


def _enhanced(path, positions, orientations=None):
    """Write a multi-frame file with a position and an orientation of each frame."""
    groups = []
    for number, position in enumerate(positions):
        plane, orientation, frame = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, position]
        orientation.ImageOrientationPatient = AXIAL if orientations is None else orientations[number]
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [plane], [orientation]
        groups.append(frame)
    pixels = np.arange(len(positions) * 48, dtype=np.int16).reshape(len(positions), 6, 8)
    return _slice(path, pixels=pixels, NumberOfFrames=len(positions), PerFrameFunctionalGroupsSequence=groups)


def test_frames_that_are_no_slices_of_one_volume_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"one frame per slice, got 6 frames at 3 positions, such as several time"):
        read_image(_enhanced(tmp_path / "times.dcm", [0, 1, 2, 0, 1, 2]))
    with pytest.raises(DataError, match=r"expected parallel slices, got 2 orientations"):
        read_image(_enhanced(tmp_path / "scout.dcm", [0, 1, 2], [AXIAL, AXIAL, [1, 0, 0, 0, 0, -1]]))
    with pytest.raises(DataError, match=r"equal distances of 1 mm, got 2 mm after slice 2 of 4"):
        read_image(_enhanced(tmp_path / "gap.dcm", [0, 1, 3, 4]))


def test_a_folder_with_one_file_of_several_frames_is_that_volume(tmp_path):
    (tmp_path / "series").mkdir()
    file = _slice(
        tmp_path / "series/x.dcm", pixels=np.arange(3 * 48, dtype=np.int16).reshape(3, 6, 8), NumberOfFrames=3
    )
    image, spacing = read_image(tmp_path / "series")
    np.testing.assert_array_equal(image, read_image(file)[0])
    assert (image.shape, spacing) == ((1, 8, 6, 3), read_image(file)[1])


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_in_run_length_encoding_are_those_of_pydicom(tmp_path, bits):
    kind = np.dtype(f"u{bits // 8}")
    colours = np.random.default_rng(0).integers(0, 2**bits, (6, 8, 3)).astype(kind)
    fields = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    path = _slice(tmp_path / "plain.dcm", pixels=np.zeros((6, 8), kind), **fields)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = colours.tobytes()
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    expected = pydicom.dcmread(tmp_path / "rle.dcm").pixel_array
    np.testing.assert_array_equal(expected, colours)
    np.testing.assert_array_equal(read_image(tmp_path / "rle.dcm")[0], colours.transpose(2, 1, 0)[:, ::-1, ::-1])


def test_intensities_of_a_lookup_table_are_those_of_pydicom(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [48, 0, 16], "US"
    table.add_new("LUTData", "US", [(value * 37) % 1000 for value in range(48)])
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8)
    path = _slice(tmp_path / "x.dcm", pixels=pixels, ModalityLUTSequence=[table])
    expected = pydicom.pixels.apply_modality_lut(pixels, pydicom.dcmread(path))
    assert not np.array_equal(expected, pixels)
    np.testing.assert_array_equal(read_image(path)[0][0], expected.T[::-1, ::-1])


def test_dicom_files_without_pixels_are_named(tmp_path):
    dataset = pydicom.dcmread(_slice(tmp_path / "x.dcm", Modality="RTPLAN"))
    for name in ("Rows", "Columns", "PixelData"):
        delattr(dataset, name)
    dataset.save_as(tmp_path / "plan.dcm")
    with pytest.raises(DataError, match="modality RTPLAN holds no image"):
        read_image(tmp_path / "plan.dcm")


def test_fractional_segmentations_are_named(tmp_path):
    folder = _series(tmp_path / "series", [(0, 0, 2.0 * height) for height in range(2)])
    mask_file = _segmentation(tmp_path / "x.dcm", sorted(folder.iterdir()), [0, 1], np.ones((2, 6, 8), bool))
    dataset = pydicom.dcmread(mask_file)
    dataset.SegmentationType = "FRACTIONAL"
    dataset.save_as(mask_file)
    with pytest.raises(DataError, match="its segments are fractional"):
        read_mask(mask_file, LABELS)


class _One:
    """A source of one case."""

    def __init__(self, image, mask):
        self.cases = (Case("x", "x", images=(image,), masks=(MaskFile(mask),)),)

    def read(self, case):
        return read_files(case, LABELS)

    def findings(self):
        summary = examine(self, self.cases[0], LABELS)
        return [finding.text for finding in find_problems([summary], self.cases, None, LABELS)]


def test_headers_that_contradict_each_other_are_told(tmp_path):
    array = np.random.default_rng(0).integers(0, 2, (5, 5, 5)).astype(np.uint8)
    plain = nibabel.Nifti1Image(array, np.eye(4))
    nibabel.save(plain, tmp_path / "image.nii")
    nibabel.save(plain, tmp_path / "same.nii")
    assert _One(tmp_path / "image.nii", tmp_path / "same.nii").findings() == []
    plain.set_sform(np.eye(4), 1)
    plain.set_qform(np.diag([-1.0, 1, 1, 1]), 1)
    nibabel.save(plain, tmp_path / "conflict.nii")
    (text,) = _One(tmp_path / "image.nii", tmp_path / "conflict.nii").findings()
    assert "conflict.nii: its sform and qform give the axes different directions" in text
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 4  # the same place, with the first axis in the other direction
    nibabel.save(nibabel.Nifti1Image(array, flipped), tmp_path / "flipped.nii")
    (text,) = _One(tmp_path / "image.nii", tmp_path / "flipped.nii").findings()
    assert "flipped.nii: it is stored in another orientation than" in text


@pytest.mark.parametrize("heights", [[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]])
def test_slices_of_several_time_points_are_named(tmp_path, heights):
    folder = _series(tmp_path / "series", [(0, 0, height) for height in heights])
    assert format_name(folder) == "DICOM series"
    with pytest.raises(DataError, match=r"got 6 slices at 2 positions, such as several time points"):
        read_image(folder)


def test_a_series_after_many_other_files(tmp_path):
    folder = _series(tmp_path / "series", [(0, 0, height) for height in range(3)])
    for number in range(100):
        (folder / f"00_{number:03}.jpg").write_bytes(b"")
    for number in range(9):  # scouts at one position
        _slice(folder / f"00_scout_{number}.dcm", position=(0, 0, 0), SeriesInstanceUID=generate_uid())
    assert format_name(folder) == "DICOM series"
