"""Grids from headers alone equal those of the whole files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app_cdm.data.dicom import find_dicom_series
from app_cdm.data.header import read_grid, read_series_grid
from app_cdm.data.slices import find_slicing_axis
from app_cdm.data.volume import VolumeError, read_volume, write_mask
from tests.host.studies import head, write_bad_images, write_dicom_series, write_nifti, write_picture

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


@pytest.mark.parametrize("name", ["volume.nii.gz", "volume.nii", "volume.nrrd", "picture.png"])
def test_grid_equals_that_of_the_volume(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".png"):
        write_picture(path)
    elif name.endswith(".nrrd"):
        source = read_volume(write_nifti(tmp_path / "source.nii.gz", head()))
        write_mask((source.array > 100).astype(np.uint8), source, path)
    else:
        write_nifti(path, head())
    grid, volume = read_grid(path), read_volume(path)
    assert grid.array.shape == volume.array.shape and grid.kind == volume.kind
    np.testing.assert_allclose(grid.affine, volume.affine, atol=1e-5)
    assert find_slicing_axis(grid) == find_slicing_axis(volume)
    assert grid.array.strides == (0, 0, 0), "takes memory"


@pytest.mark.parametrize(("unit", "size_mm"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_nifti_in_any_unit_has_its_grid_in_millimetres(tmp_path: Path, unit: str, size_mm: float) -> None:
    source = nib.Nifti1Image(np.ones((5, 6, 4), np.uint8), np.array([[0, 3.0, 0, 7], [2, 0, 0, -8], [0, 0, 4, 9], [0, 0, 0, 1]]))
    source.header.set_xyzt_units(unit, "sec")
    nib.save(source, tmp_path / "image.nii")
    for grid in (read_grid(tmp_path / "image.nii"), read_volume(tmp_path / "image.nii")):
        np.testing.assert_allclose(grid.spacing_mm, np.array([2.0, 3.0, 4.0]) * size_mm)
        np.testing.assert_allclose(grid.affine[:3, 3], np.array([7.0, -8.0, 9.0]) * size_mm)


def test_series_grid_equals_that_of_the_volume_and_hidden_folders_hold_no_studies(tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "series")
    write_dicom_series(tmp_path / ".trash")
    (series,) = find_dicom_series(tmp_path)
    grid, volume = read_series_grid(series), read_volume(tmp_path / "series")
    assert grid.array.shape == volume.array.shape
    np.testing.assert_allclose(grid.affine, volume.affine, atol=1e-6)


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "volume.nii.gz", head())
    assert read_grid(path).array.shape == (40, 48, 6)
    write_nifti(path, head(shape=(40, 48, 9)))
    assert read_grid(path).array.shape == (40, 48, 9)


@pytest.mark.parametrize("name", ["empty.nii.gz", "text.nii.gz", "text.nrrd", "text.png", "four_dimensions.nii.gz", "no_voxels.nii.gz"])
def test_broken_headers_are_refused(tmp_path: Path, name: str) -> None:
    write_bad_images(tmp_path / "bad")
    with pytest.raises(VolumeError):
        read_grid(tmp_path / "bad" / name)
    with pytest.raises(FileNotFoundError):
        read_grid(tmp_path / name)


def test_grid_of_nrrd_does_not_ask_for_files_of_other_folders(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 3 2\nspacings: 1 2 3\nencoding: raw\n"
    (tmp_path / "studies").mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(24))
    (tmp_path / "studies" / "evil.nrrd").write_text(f"{header}data file: ../secret.raw\n\n")
    with pytest.raises(VolumeError, match="same folder"):
        read_grid(tmp_path / "studies" / "evil.nrrd")
