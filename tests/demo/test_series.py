from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from app_cdm.data.volume import find_dicom_series, read_volume
from demo.cases import Case, CaseSpec
from demo.client import Grid
from demo.dicom import series_uid, write_series
from demo.report import align
from demo.warp import axial_geometry


@pytest.fixture(scope="module")
def case() -> Case:
    rng = np.random.default_rng(3)
    geometry = axial_geometry(rng, slice_mm=6.1, pixel_mm=1.47, tilt_deg=11.0, orientation="LPS")
    image = rng.integers(0, 900, geometry.shape).astype(np.int16)
    return Case(CaseSpec("series", seed=3, radius_mm=0.0), image, np.zeros(geometry.shape, dtype=np.uint8), geometry)


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("series")
    write_series(case, path)
    return path


def test_header_is_a_synthetic_mr_image(case: Case, folder: Path) -> None:
    files = sorted(folder.iterdir())
    assert len(files) == case.image.shape[2]
    headers = [pydicom.dcmread(path) for path in files]
    first = headers[0]
    assert first.SOPClassUID.name == "MR Image Storage"
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert "SYNTHETIC" in str(first.PatientName)
    assert {h.SeriesInstanceUID for h in headers} == {series_uid("series")}
    assert len({h.SOPInstanceUID for h in headers}) == len(files)
    assert [float(v) for v in first.PixelSpacing] == pytest.approx([1.47, 1.47], abs=1e-5)
    assert float(first.SpacingBetweenSlices) == pytest.approx(6.1, abs=1e-5)
    row, column = np.array(first.ImageOrientationPatient[:3], float), np.array(first.ImageOrientationPatient[3:], float)
    assert float(row @ column) == pytest.approx(0.0, abs=1e-6)
    steps = np.diff([np.array(h.ImagePositionPatient, float) for h in headers], axis=0)
    assert np.allclose(np.linalg.norm(steps, axis=1), 6.1, atol=1e-4)
    assert np.allclose(np.cross(row, column) @ steps[0], 6.1, atol=1e-4)


def test_round_trip_keeps_voxels_and_geometry(case: Case, folder: Path) -> None:
    (series,) = find_dicom_series(folder)
    assert series.uid == series_uid("series")
    volume = read_volume(folder)
    reference = Grid(case.image, case.geometry.affine.astype(np.float64))
    read = align(Grid(volume.array, np.asarray(volume.affine)), reference)
    assert read is not None
    assert np.array_equal(read.values, case.image)


def test_identifiers_never_change(case: Case, folder: Path, tmp_path: Path) -> None:
    for path in write_series(case, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()
