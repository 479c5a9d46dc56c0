"""Multi-frame DICOM: enhanced MR and CT, each frame with its own place and scale; what has no places is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from app_cdm.data.header import read_series_grid
from app_cdm.data.volume import VolumeError, find_dicom_series, read_dicom_series, read_volume
from tests.data.dicom_files import expected_affine, plane, repack, shared_geometry, write_frames

# ITK's compiled modules warn while they load, and crash where that warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def made(count: int = 6, lowest: int = -500) -> np.ndarray:
    return np.random.default_rng(count).integers(lowest, 3000, (count, 7, 5))


@pytest.mark.parametrize("sop_class", [EnhancedMRImageStorage, EnhancedCTImageStorage])
def test_frames_in_any_order_make_one_volume(tmp_path: Path, sop_class: str) -> None:
    frames, order = made(), [3, 0, 5, 1, 4, 2]
    write_frames(tmp_path / "one.dcm", frames[order], [plane(index) for index in order], sop_class=sop_class)
    for place in (tmp_path, tmp_path / "one.dcm"):
        volume = read_volume(place)
        np.testing.assert_array_equal(volume.array, frames.T)
        np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
    grid = read_series_grid(find_dicom_series(tmp_path)[0])
    assert grid.array.shape == volume.array.shape
    np.testing.assert_allclose(grid.affine, volume.affine)


def test_frames_in_order_equal_simpleitk(tmp_path: Path) -> None:
    write_frames(tmp_path / "one.dcm", made(), [plane(index) for index in range(6)])
    oracle, volume = sitk.ReadImage(str(tmp_path / "one.dcm")), read_volume(tmp_path / "one.dcm")
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(oracle).T)
    np.testing.assert_allclose((np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine)[:3, 3], oracle.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, oracle.GetSpacing(), atol=1e-4)


def test_every_frame_has_its_own_scale(tmp_path: Path) -> None:
    frames = made(3)
    scales = [{"PixelValueTransformation": {"RescaleSlope": slope, "RescaleIntercept": -7.5}} for slope in (1.0, 2.0, 0.5)]
    write_frames(tmp_path / "one.dcm", frames, [plane(index) | scale for index, scale in enumerate(scales)])
    array = read_volume(tmp_path / "one.dcm").array
    for index, slope in enumerate((1.0, 2.0, 0.5)):
        np.testing.assert_allclose(array[:, :, index].T, frames[index] * slope - 7.5, rtol=1e-6)


def test_scale_that_all_frames_share(tmp_path: Path) -> None:
    frames = made(3)
    shared = shared_geometry() | {"PixelValueTransformation": {"RescaleSlope": 2.0, "RescaleIntercept": -1024.0}}
    write_frames(tmp_path / "one.dcm", frames, [plane(index) for index in range(3)], shared, sop_class=EnhancedCTImageStorage)
    np.testing.assert_allclose(read_volume(tmp_path / "one.dcm").array, frames.T * 2.0 - 1024.0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_frames(tmp_path: Path, compressor: str, photometric: str) -> None:
    frames = made(4, lowest=0)
    scales = [{"PixelValueTransformation": {"RescaleSlope": slope, "RescaleIntercept": 1.0}} for slope in (1.0, 2.0, 3.0, 4.0)]
    per_frame = [plane(index) | scale for index, scale in enumerate(scales)]
    write_frames(tmp_path / "one.dcm", frames, per_frame, PhotometricInterpretation=photometric)
    repack(tmp_path / "one.dcm", compressor)
    expected = np.stack([frame * slope + 1.0 for frame, slope in zip(frames, (1.0, 2.0, 3.0, 4.0), strict=True)])
    np.testing.assert_array_equal(read_volume(tmp_path / "one.dcm").array, expected.T)


def test_frames_in_jpeg_ls(tmp_path: Path) -> None:
    packed = pydicom.dcmread(PYDICOM_FILES / "MR_small_jpeg_ls_lossless.dcm")
    pixels = pydicom.dcmread(PYDICOM_FILES / "MR_small.dcm").pixel_array
    data = write_frames(tmp_path / "one.dcm", np.stack([pixels] * 3), [plane(index) for index in range(3)])
    data.PixelData = encapsulate([next(generate_pixel_data_frame(packed.PixelData, 1))] * 3)
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    data.save_as(tmp_path / "one.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "one.dcm").array, np.stack([pixels] * 3).T)


def test_one_series_of_two_files_of_frames(tmp_path: Path) -> None:
    frames = made()
    for number, half in enumerate((range(3), range(3, 6)), start=1):
        write_frames(
            tmp_path / f"{number}.dcm", frames[list(half)], [plane(index) for index in half], series="1.2.3", InstanceNumber=number
        )
    np.testing.assert_array_equal(read_volume(tmp_path).array, frames.T)


def two_echoes(path: Path, **changes: Any) -> np.ndarray:
    """Six places, two echoes, interleaved; the second echo is the first plus 5000."""
    frames = made(lowest=0)
    both = np.stack([frames, frames + 5000], axis=1).reshape(12, 7, 5)
    per_frame = [plane(index) | {"MREcho": {"EffectiveEchoTime": echo}} for index in range(6) for echo in (20.0, 90.0)]
    write_frames(path, both, per_frame, **changes)
    return frames


def test_two_echoes_are_two_volumes(tmp_path: Path) -> None:
    frames = two_echoes(tmp_path / "one.dcm")
    found = find_dicom_series(tmp_path)
    assert [(item.part, item.problem) for item in found] == [(("EchoTime", "20"), ""), (("EchoTime", "90"), "")]
    assert found[0].uid == found[1].uid
    for series, extra in zip(found, (0, 5000), strict=True):
        volume = read_dicom_series(series)
        np.testing.assert_array_equal(volume.array, frames.T + extra)
        np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
        assert read_series_grid(series).array.shape == volume.array.shape
    with pytest.raises(VolumeError, match=r"2 volumes in this folder.*EchoTime 20.*EchoTime 90"):
        read_volume(tmp_path)
    with pytest.raises(VolumeError, match=r"12 slices at about 6 positions.*EchoTime 20, 90"):
        read_volume(tmp_path / "one.dcm")


def test_dimensions_that_no_attribute_separates_are_refused(tmp_path: Path) -> None:
    """Two echoes by two times: neither alone tells four volumes apart."""
    kinds = [(echo, time) for echo in (20.0, 90.0) for time in (1, 2)]
    per_frame = [
        plane(index) | {"MREcho": {"EffectiveEchoTime": echo}, "FrameContent": {"TemporalPositionIndex": time}}
        for index in range(3)
        for echo, time in kinds
    ]
    write_frames(tmp_path / "one.dcm", made(12), per_frame)
    (series,) = find_dicom_series(tmp_path)
    assert "12 slices at about 3 positions" in series.problem
    assert "EchoTime 20, 90; TemporalPosition 1, 2" in series.problem
    with pytest.raises(VolumeError, match="send one volume of them"):
        read_volume(tmp_path)


def test_two_stacks_in_two_directions_are_refused(tmp_path: Path) -> None:
    other = {"PlaneOrientation": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}}
    own = {"PlaneOrientation": shared_geometry()["PlaneOrientation"]}
    shared = {"PixelMeasures": shared_geometry()["PixelMeasures"]}
    per_frame = [plane(index) | (own if index < 3 else other) for index in range(6)]
    write_frames(tmp_path / "one.dcm", made(), per_frame, shared)
    with pytest.raises(VolumeError, match=r"one.dcm, frame \d: points in another direction"):
        read_volume(tmp_path)


def test_a_missing_frame_is_refused_by_its_number(tmp_path: Path) -> None:
    write_frames(tmp_path / "one.dcm", made(5), [plane(index) for index in (0, 1, 2, 4, 5)])
    with pytest.raises(VolumeError, match=r"7\.00 mm between one\.dcm, frame 3 and one\.dcm, frame 4 where the series has 3\.50 mm"):
        read_volume(tmp_path)


def test_places_for_some_frames_only_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "one.dcm", made(5), [plane(index) for index in range(4)])
    with pytest.raises(VolumeError, match="describes 4 frames and has 5"):
        read_volume(tmp_path / "one.dcm")
    write_frames(tmp_path / "one.dcm", made(5), [plane(index) if index != 2 else {} for index in range(5)])
    with pytest.raises(VolumeError, match="frame 3: position, orientation or pixel spacing is missing"):
        read_volume(tmp_path / "one.dcm")


@pytest.mark.parametrize("sop_class", [MultiFrameGrayscaleWordSecondaryCaptureImageStorage, CTImageStorage])
def test_frames_without_any_place_are_refused(tmp_path: Path, sop_class: str) -> None:
    data = write_frames(tmp_path / "one.dcm", made(5), [{}] * 5, sop_class=sop_class)
    del data.PerFrameFunctionalGroupsSequence, data.SharedFunctionalGroupsSequence
    data.save_as(tmp_path / "one.dcm")
    with pytest.raises(VolumeError, match=r"several frames in one file \(5\) without a position of each"):
        read_volume(tmp_path / "one.dcm")
    assert find_dicom_series(tmp_path)[0].problem.startswith("one.dcm: several frames")


def test_truncated_frames_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "one.dcm", made(), [plane(index) for index in range(6)])
    content = (tmp_path / "one.dcm").read_bytes()
    (tmp_path / "one.dcm").write_bytes(content[:-50])
    with pytest.raises(VolumeError, match=r"^one\.dcm: cannot be read as DICOM"):
        read_volume(tmp_path / "one.dcm")
