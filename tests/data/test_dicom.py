"""DICOM series and files: order, geometry, rescale, compression, real scans and every refusal."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless, generate_uid

from app_cdm.data.volume import VolumeError, find_dicom_series, read_dicom_series, read_volume

# ITK's compiled modules warn while they load, and crash where that warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
load: Any = nib.load
REAL_DATA = Path(os.environ.get("APP_CDM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "dicom"
PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="real DICOM data is not here (APP_CDM_DATA)")

ROW, COLUMN = np.array([0.96, 0.28, 0.0]), np.array([-0.28, 0.96, 0.0]) @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
COLUMN = np.cross(np.cross(ROW, COLUMN) / np.linalg.norm(np.cross(ROW, COLUMN)), ROW)
NORMAL = np.cross(ROW, COLUMN)
ORIGIN = np.array([-30.0, 12.0, 5.0])
PIXEL_SPACING, STEP_MM = (0.8, 0.5), 3.5
STUDY = generate_uid()


def write_slice(path: Path, pixels: np.ndarray, position: np.ndarray | None, series: str, **changes: Any) -> FileDataset:
    """Writes one MR (or other) slice; `changes` set or (None) remove attributes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = changes.pop("sop_class", MRImageStorage)
    meta.MediaStorageSOPInstanceUID = changes.pop("sop_uid", None) or generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.is_little_endian, data.is_implicit_VR = True, False
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, series
    data.Modality, data.SeriesDescription, data.PatientID = "MR", "AX FLAIR", "synthetic"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelSpacing, data.SliceThickness = list(PIXEL_SPACING), 99.0
    data.ImageOrientationPatient = [round(float(value), 8) for value in (*ROW, *COLUMN)]
    if position is not None:
        data.ImagePositionPatient = [round(float(value), 6) for value in position]
    data.PixelData = pixels.astype("<i2").tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, write_like_original=False)
    return data


def write_series(folder: Path, count: int = 6, series: str | None = None, skip: tuple[int, ...] = (), **changes: Any) -> np.ndarray:
    """Writes a series whose file names run against its order; returns `(columns, rows, slices)` in spatial order."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(count).integers(-500, 3000, (5, 7, count))
    uid = series or generate_uid()
    for index in range(count):
        if index not in skip:
            position = ORIGIN + index * STEP_MM * NORMAL
            write_slice(folder / f"im{(index * 5 + 2) % 7}_{count - index}", array[:, :, index].T, position, uid, **changes)
    return array


def expected_affine() -> np.ndarray:
    """RAS affine of `write_series`, from the standard's equation C.7.6.2.1-1."""
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = ROW * PIXEL_SPACING[1], COLUMN * PIXEL_SPACING[0], NORMAL * STEP_MM
    affine[:3, 3] = ORIGIN
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def test_series_is_ordered_by_position_not_by_name(tmp_path: Path) -> None:
    array = write_series(tmp_path / "series")
    volume = read_volume(tmp_path / "series")
    assert (volume.kind, volume.path, volume.array.dtype) == ("dicom", tmp_path / "series", np.float32)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, (0.5, 0.8, 3.5), atol=1e-4)


def test_series_equals_simpleitk(tmp_path: Path) -> None:
    write_series(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    oracle, volume = reader.Execute(), read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(oracle).T)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    np.testing.assert_allclose(lps[:3, 3], oracle.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(lps[:3, :3] / volume.spacing_mm, np.reshape(oracle.GetDirection(), (3, 3)), atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, oracle.GetSpacing(), atol=1e-4)


@pytest.mark.parametrize("sop_class", [MRImageStorage, CTImageStorage])
def test_rescale_of_each_slice_is_applied(tmp_path: Path, sop_class: str) -> None:
    uid, pixels = generate_uid(), np.arange(35).reshape(7, 5)
    for index, slope in enumerate((1.0, 2.0, 0.5)):
        position = ORIGIN + index * STEP_MM * NORMAL
        write_slice(tmp_path / f"{index}.dcm", pixels, position, uid, RescaleSlope=slope, RescaleIntercept=-7.5, sop_class=sop_class)
    array = read_volume(tmp_path).array
    for index, slope in enumerate((1.0, 2.0, 0.5)):
        np.testing.assert_allclose(array[:, :, index].T, pixels * slope - 7.5, rtol=1e-6)


def test_tilted_gantry_keeps_its_shear(tmp_path: Path) -> None:
    uid, step = generate_uid(), np.array([0.0, 0.6, 3.0])
    straight = [1, 0, 0, 0, 1, 0]
    for index in range(5):
        write_slice(tmp_path / f"{index}", np.zeros((7, 5)), ORIGIN + index * step, uid, ImageOrientationPatient=straight)
    np.testing.assert_allclose(read_volume(tmp_path).affine[:3, 2], step * (-1, -1, 1), atol=1e-5)


def test_find_lists_series_and_passes_over_other_files(tmp_path: Path) -> None:
    write_series(tmp_path / "b" / "deep", 3, series="1.2.3")
    write_series(tmp_path / "a", 4, series="1.2.4", SeriesDescription="LOC", Modality="CT")
    write_slice(tmp_path / "seg", np.zeros((7, 5)), ORIGIN, "1.2.5", Modality="SEG")
    write_slice(tmp_path / "report", np.zeros((7, 5)), ORIGIN, "1.2.6", Rows=None)
    (tmp_path / "notes.txt").write_text("x" * 500)
    (tmp_path / "short").write_text("x")
    (tmp_path / "fake.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rubbish" * 99)
    found = find_dicom_series(tmp_path)
    assert [(item.uid, len(item.files), item.description, item.modality) for item in found] == [
        ("1.2.3", 3, "AX FLAIR", "MR"),
        ("1.2.4", 4, "LOC", "CT"),
    ]
    assert {item.study_uid for item in found} == {STUDY}
    assert read_dicom_series(found[0]).array.shape == (5, 7, 3)
    with pytest.raises(FileNotFoundError):
        find_dicom_series(tmp_path / "none")


def test_several_series_in_one_folder_are_refused_by_name(tmp_path: Path) -> None:
    write_series(tmp_path / "x", 3, series="1.2.3")
    write_series(tmp_path / "y", 4, series="1.2.4", SeriesDescription="LOCALIZER")
    with pytest.raises(VolumeError, match=r"2 series .*1\.2\.3 \(MR 'AX FLAIR', 3 files\); 1\.2\.4 \(MR 'LOCALIZER', 4 files\)"):
        read_volume(tmp_path)
    assert read_volume(tmp_path / "y").array.shape == (5, 7, 4)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x" * 500)
    with pytest.raises(VolumeError, match="no DICOM image"):
        read_volume(tmp_path)


def test_copies_of_one_instance_count_once(tmp_path: Path) -> None:
    array = write_series(tmp_path)
    for path in sorted(tmp_path.iterdir())[:3]:
        (tmp_path / f"copy of {path.name}").write_bytes(path.read_bytes())
    np.testing.assert_array_equal(read_volume(tmp_path).array, array)


@pytest.mark.parametrize("skip", [(1,), (2, 3), (4,)])
def test_missing_slice_is_refused(tmp_path: Path, skip: tuple[int, ...]) -> None:
    write_series(tmp_path, 9, skip=skip)
    with pytest.raises(VolumeError, match=rf"{STEP_MM * (len(skip) + 1):.2f} mm between .* 3.50 mm: a slice is missing"):
        read_volume(tmp_path)


@pytest.mark.parametrize("repeats", [1, 6])
def test_two_slices_at_one_position_are_refused(tmp_path: Path, repeats: int) -> None:
    write_series(tmp_path, 6, series="1.2.3")
    for index in range(repeats):
        write_slice(tmp_path / f"echo{index}", np.zeros((7, 5)), ORIGIN + index * STEP_MM * NORMAL, "1.2.3")
    with pytest.raises(VolumeError, match=rf"at one position \({6 + repeats} slices at about 6 positions\)"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "another direction"),
        ({"ImageOrientationPatient": None}, "is missing"),
        ({"PixelSpacing": None}, "is missing"),
        ({"PixelSpacing": [0.7, 0.7]}, "pixel spacing"),
        ({"Rows": 5, "Columns": 7}, "pixels where others"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "several frames"),
    ],
)
def test_slice_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_series(tmp_path, 4, series="1.2.3")
    write_slice(tmp_path / "zz", np.zeros((7, 5)), ORIGIN + 4 * STEP_MM * NORMAL, "1.2.3", **changes)
    with pytest.raises(VolumeError, match=message):
        read_volume(tmp_path)


def test_missing_position_and_crooked_stack_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", 4, series="1.2.3")
    write_slice(tmp_path / "a" / "zz", np.zeros((7, 5)), None, "1.2.3")
    with pytest.raises(VolumeError, match="zz: position"):
        read_volume(tmp_path / "a")
    write_series(tmp_path / "b", 4, series="1.2.3")
    write_slice(tmp_path / "b" / "zz", np.zeros((7, 5)), ORIGIN + 4 * STEP_MM * NORMAL + 5 * ROW, "1.2.3")
    with pytest.raises(VolumeError, match="shifted"):
        read_volume(tmp_path / "b")
    write_series(tmp_path / "c", 4, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    with pytest.raises(VolumeError, match="perpendicular"):
        read_volume(tmp_path / "c")
    write_series(tmp_path / "d", 4, PixelSpacing=[0, 0])
    with pytest.raises(VolumeError, match="singular"):
        read_volume(tmp_path / "d")


def test_truncated_pixels_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path)
    path = sorted(tmp_path.iterdir())[2]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(VolumeError, match=path.name):
        read_volume(tmp_path)


def test_single_file_is_one_slice_on_its_own_grid(tmp_path: Path) -> None:
    pixels = np.arange(35).reshape(7, 5)
    write_slice(tmp_path / "one.dcm", pixels, ORIGIN, "1.2.3", SliceThickness=4.0)
    volume = read_volume(tmp_path / "one.dcm")
    np.testing.assert_array_equal(volume.array[:, :, 0].T, pixels)
    expected = expected_affine()
    expected[:3, 2] *= 4.0 / STEP_MM
    np.testing.assert_allclose(volume.affine, expected, atol=1e-4)


def test_single_file_without_a_geometry_is_a_picture(tmp_path: Path) -> None:
    write_slice(tmp_path / "us", np.ones((7, 5)), None, "1.2.3", ImageOrientationPatient=None, PixelSpacing=None, SliceThickness=None)
    np.testing.assert_array_equal(read_volume(tmp_path / "us").affine, np.diag([-1, -1, 1, 1]))


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"],
)
def test_compressed_syntaxes_give_the_same_pixels(name: str) -> None:
    plain, packed = (PYDICOM_FILES / item for item in ("MR_small.dcm", name))
    reference = pydicom.dcmread(plain).pixel_array
    np.testing.assert_array_equal(read_volume(packed).array[:, :, 0].T, reference)
    np.testing.assert_allclose(read_volume(packed).affine, read_volume(plain).affine)


def test_compressed_series_written_here(tmp_path: Path) -> None:
    array = write_series(tmp_path, 4)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path).array, array)


def test_ct_of_pydicom_is_in_hounsfield_units() -> None:
    path = PYDICOM_FILES / "CT_small.dcm"
    data = pydicom.dcmread(path)
    expected = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    np.testing.assert_allclose(read_volume(path).array[:, :, 0].T, expected)


@pytest.mark.parametrize(
    "name", ["rtdose.dcm", "rtplan.dcm", "reportsi.dcm", "liver_1frame.dcm", "MR_truncated.dcm", "SC_rgb_rle_2frame.dcm"]
)
def test_objects_that_are_no_single_image_are_refused(name: str) -> None:
    with pytest.raises(VolumeError, match=f"^{name}: "):
        read_volume(PYDICOM_FILES / name)


def test_threads_read_the_same_as_one_after_another(tmp_path: Path) -> None:
    write_series(tmp_path, 8)
    alone = read_volume(tmp_path).array
    with ThreadPoolExecutor(8) as pool:
        for volume in pool.map(read_volume, [tmp_path] * 16):
            np.testing.assert_array_equal(volume.array, alone)


@needs_real_data
def test_real_ct_lies_on_the_grid_of_its_liver_reference() -> None:
    volume = read_volume(REAL_DATA / "chaos_ct_set3" / "DICOM")
    reference = load(REAL_DATA / "chaos_ct_set3" / "liver_gt.nii.gz")
    assert volume.array.shape == reference.shape == (512, 512, 78)
    voxel_to_voxel = np.linalg.inv(volume.affine) @ reference.affine
    np.testing.assert_allclose(voxel_to_voxel, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 77], [0, 0, 0, 1]], atol=1e-3)
    liver = volume.array[np.asarray(reference.dataobj)[:, :, ::-1] > 0]
    assert 100 < liver.mean() < 180 and liver.std() < 50


@needs_real_data
@pytest.mark.parametrize("series", ["AX_FLAIR", "AX_T1_POST"])
def test_real_mr_lies_on_the_grid_of_its_reference(series: str) -> None:
    studies = sorted((REAL_DATA / "lgg_derived").iterdir())
    assert len(studies) == 3
    for study in studies:
        volume, reference = read_volume(study / series), load(study / "seg_gt.nii.gz")
        assert volume.array.shape == reference.shape
        np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-3)
        assert len(find_dicom_series(study)) == 2
