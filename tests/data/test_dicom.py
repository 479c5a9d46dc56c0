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
from pydicom.uid import CTImageStorage, MRImageStorage, RLELossless, generate_uid

from app_cdm.data.volume import VolumeError, find_dicom_series, read_dicom_series, read_volume
from tests.data.dicom_files import NORMAL, ORIGIN, ROW, STEP_MM, STUDY, expected_affine, repack, write_series, write_slice

# ITK's compiled modules warn while they load, and crash where that warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
load: Any = nib.load
REAL_DATA = Path(os.environ.get("APP_CDM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "dicom"
PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="real DICOM data is not here (APP_CDM_DATA)")


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


@pytest.mark.parametrize("compressor", ["", "JPEG", "JPEG2000"])
@pytest.mark.parametrize("sop_class", [MRImageStorage, CTImageStorage])
def test_monochrome1_is_not_inverted_compressed_or_not(tmp_path: Path, sop_class: str, compressor: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 3000, (7, 5))
    write_slice(
        tmp_path / "one.dcm",
        pixels,
        ORIGIN,
        "1.2.3",
        sop_class=sop_class,
        PhotometricInterpretation="MONOCHROME1",
        RescaleSlope=2.0,
        RescaleIntercept=-5.0,
    )
    if compressor:
        repack(tmp_path / "one.dcm", compressor)
    assert pydicom.dcmread(tmp_path / "one.dcm").PhotometricInterpretation == "MONOCHROME1"
    np.testing.assert_array_equal(read_volume(tmp_path / "one.dcm").array[:, :, 0].T, pixels * 2.0 - 5.0)


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


def write_echoes(folder: Path, per_echo: int = 4, **marks: list[Any]) -> np.ndarray:
    """Several slices at each position that differ in some attributes; returns `(volume, rows, columns, slices)`."""
    count = len(next(iter(marks.values())))
    arrays = np.random.default_rng(0).integers(0, 3000, (count, 7, 5, per_echo))
    for volume in range(count):
        changes = {name: values[volume] for name, values in marks.items()}
        for index in range(per_echo):
            path = folder / f"{(index * 7 + volume * 3) % 11}_{volume}"
            write_slice(path, arrays[volume, ..., index], at(index), "1.2.3", **changes)
    return arrays


def at(index: float) -> np.ndarray:
    """Position of slice `index` of `write_series`."""
    return ORIGIN + index * STEP_MM * NORMAL


@pytest.mark.parametrize(
    ("name", "tag", "values"),
    [
        ("EchoTime", "EchoTime", [14.5, 90.0]),
        ("TemporalPosition", "TemporalPositionIdentifier", [1, 2, 3]),
        ("DiffusionBValue", "DiffusionBValue", [0.0, 1000.0]),
        ("AcquisitionNumber", "AcquisitionNumber", [2, 3]),
        ("InversionTime", "InversionTime", [800.0, 2500.0]),
    ],
)
def test_volumes_that_one_attribute_tells_apart(tmp_path: Path, name: str, tag: str, values: list[Any]) -> None:
    arrays = write_echoes(tmp_path, **{tag: values})
    found = find_dicom_series(tmp_path)
    assert [(series.part, series.problem) for series in found] == [((name, f"{value:g}"), "") for value in values]
    for series, array in zip(found, arrays, strict=True):
        volume = read_dicom_series(series)
        np.testing.assert_array_equal(volume.array, array.transpose(1, 0, 2))
        np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
    with pytest.raises(VolumeError, match=rf"{len(values)} volumes in this folder, point to one of them: .*{name} {values[0]:g}, 4 files"):
        read_volume(tmp_path)


def test_in_phase_and_opposed_phase_are_told_apart_by_image_type(tmp_path: Path) -> None:
    write_echoes(tmp_path, ImageType=[["ORIGINAL", "PRIMARY", "IN_PHASE"], ["ORIGINAL", "PRIMARY", "OPP_PHASE"]])
    assert [series.part for series in find_dicom_series(tmp_path)] == [
        ("ImageType", "ORIGINAL-PRIMARY-IN_PHASE"),
        ("ImageType", "ORIGINAL-PRIMARY-OPP_PHASE"),
    ]


@pytest.mark.parametrize(
    "marks",
    [
        {"EchoTime": [10.0, 10.0]},  # nothing differs
        {"EchoTime": [10.0, 10.0, 20.0, 20.0], "AcquisitionNumber": [1, 2, 1, 2]},  # only both together would do
        {"DiffusionBValue": [0.0, 1000.0, 1000.0]},  # three directions of one b-value
        {"TemporalPositionIdentifier": list(range(9))},  # more than eight volumes
    ],
)
def test_volumes_that_nothing_tells_apart_are_refused_with_what_differs(tmp_path: Path, marks: dict[str, list[Any]]) -> None:
    write_echoes(tmp_path, **marks)
    (series,) = find_dicom_series(tmp_path)
    count = len(next(iter(marks.values())))
    assert f"{4 * count} slices at about 4 positions" in series.problem
    for name, values in marks.items():
        shown = f"{name.removesuffix('Identifier')} {values[0]:g}, "
        assert (shown in series.problem) == (len(set(values)) > 1)
    with pytest.raises(VolumeError, match="send one volume of them"):
        read_volume(tmp_path)


def test_an_echo_of_which_a_slice_is_missing_is_not_split_off(tmp_path: Path) -> None:
    write_echoes(tmp_path, EchoTime=[10.0, 20.0])
    next(path for path in tmp_path.iterdir() if path.name.endswith("_1")).unlink()
    assert [series.part for series in find_dicom_series(tmp_path)] == [None]
    with pytest.raises(VolumeError, match="7 slices at about 4 positions"):
        read_volume(tmp_path)


def test_acquisitions_one_after_the_other_are_one_volume(tmp_path: Path) -> None:
    """Where no two slices share a position nothing is split, whatever differs."""
    for index in range(6):
        write_slice(tmp_path / f"{index}", np.zeros((7, 5)), at(index), "1.2.3", AcquisitionNumber=index // 3, EchoTime=10.0 + index)
    assert read_volume(tmp_path).array.shape == (5, 7, 6)


def test_slices_that_share_an_instance_uid_are_no_copies(tmp_path: Path) -> None:
    """Careless anonymisation: one SOPInstanceUID for all; to drop all but one would be a volume of one slice."""
    for index in range(4):
        write_slice(tmp_path / f"{index}", np.full((7, 5), index), at(index), "1.2.3", sop_uid="1.2.3.4", InstanceNumber=1)
    np.testing.assert_array_equal(read_volume(tmp_path).array[0, 0], range(4))


def test_gap_between_slices_counts_and_thickness_does_not(tmp_path: Path) -> None:
    write_series(tmp_path, 5, SliceThickness=2.0, SpacingBetweenSlices=77.0)
    np.testing.assert_allclose(read_volume(tmp_path).spacing_mm, (0.5, 0.8, STEP_MM), atol=1e-4)


def test_unused_high_bits_do_not_count(tmp_path: Path) -> None:
    """Twelve bits stored, an overlay in the four above; signed and unsigned, as SimpleITK reads them."""
    for signed in (0, 1):
        folder = tmp_path / str(signed)
        folder.mkdir()
        pixels = np.arange(35).reshape(7, 5) * 100 + 0x1000 * (np.arange(35).reshape(7, 5) % 7)
        bits = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": signed}
        write_slice(folder / "one.dcm", pixels, ORIGIN, "1.2.3", **bits)
        array = read_volume(folder / "one.dcm").array
        low = np.arange(35).reshape(7, 5) * 100 & 0xFFF
        np.testing.assert_array_equal(array[:, :, 0].T, np.where(low & 0x800, low - 0x1000, low) if signed else low)
        np.testing.assert_array_equal(array.T, sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "one.dcm"))))


def test_folder_that_cannot_be_opened_hides_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "good", 3, series="1.2.3")
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere.dcm")
    (tmp_path / "no_marker.dcm").write_bytes(b"\x08\x00\x05\x00" * 99)
    assert [series.uid for series in find_dicom_series(tmp_path)] == ["1.2.3"]
    with pytest.raises(VolumeError, match="no DICOM file marker"):
        read_volume(tmp_path / "no_marker.dcm")
