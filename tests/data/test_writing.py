"""Masks and maps on the grid of their image, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from app_cdm.data.volume import Volume, read_volume, write_map, write_mask

# ITK's compiled modules warn while they load, and crash where that warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
load: Any = nib.load
RNG = np.random.default_rng(0)


def turned(angles: tuple[float, float, float], spacing: tuple[float, float, float], flip: bool, origin: float) -> np.ndarray:
    """A rotation about all three axes, anisotropic spacing, perhaps mirrored."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag(spacing) @ np.diag([-1.0 if flip else 1.0, 1.0, 1.0])
    affine[:3, 3] = origin
    return affine


OBLIQUE = turned((0.2, -0.1, 0.4), (0.9, 1.1, 4.5), True, -17.25)
SHEARED = OBLIQUE @ np.array([[1, 0, 0.3, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def image(shape: tuple[int, int, int] = (5, 6, 4), affine: np.ndarray = OBLIQUE) -> Volume:
    """A volume that came from no file."""
    return Volume(np.zeros(shape, np.float32), affine, "dicom")


angle = st.floats(-3.0, 3.0)
spacing = st.floats(0.2, 8.0)


@settings(max_examples=40, deadline=None)
@given(
    mask=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)),
    angles=st.tuples(angle, angle, angle),
    spacings=st.tuples(spacing, spacing, spacing),
    flip=st.booleans(),
    origin=st.floats(-300, 300),
    suffix=st.sampled_from([".nii", ".nii.gz", ".nrrd"]),
)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, mask, angles, spacings, flip, origin, suffix) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("round") / f"mask{suffix}"
    volume = image(mask.shape, turned(angles, spacings, flip, origin))
    write_mask(mask, volume, path)
    again = read_volume(path)
    np.testing.assert_array_equal(again.array, mask)
    np.testing.assert_allclose(again.affine, volume.affine, atol=2e-4)
    saliency = (mask / 7.0).astype(np.float32)
    write_map(saliency, volume, path)
    np.testing.assert_array_equal(read_volume(path).array, saliency)


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED, np.diag([-1.0, -1.0, 3.0, 1.0])])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_affine_survives_even_with_shear(tmp_path: Path, affine: np.ndarray, suffix: str) -> None:
    write_mask(np.ones((5, 6, 4), bool), image(affine=affine), tmp_path / f"mask{suffix}")
    np.testing.assert_allclose(read_volume(tmp_path / f"mask{suffix}").affine, affine, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_simpleitk_sees_image_and_mask_on_one_grid(tmp_path: Path, suffix: str) -> None:
    source = sitk.GetImageFromArray(RNG.integers(0, 400, (4, 6, 5)).astype(np.int16))
    source.SetSpacing((0.9, 1.1, 4.5))
    source.SetOrigin((-31.0, 12.5, 7.75))
    source.SetDirection((sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.4)).GetMatrix())
    sitk.WriteImage(source, tmp_path / f"image{suffix}")
    volume = read_volume(tmp_path / f"image{suffix}")
    labels = RNG.integers(0, 4, volume.array.shape).astype(np.uint8)
    for target in (".nrrd", ".nii.gz", ".nii"):
        write_mask(labels, volume, tmp_path / f"mask{target}")
        read = sitk.ReadImage(tmp_path / f"mask{target}")
        assert read.GetPixelID() == sitk.sitkUInt8
        reference = sitk.ReadImage(tmp_path / f"image{suffix}")
        for question in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(read, question)(), getattr(reference, question)(), atol=1e-5)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read).T, labels)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 1), (2, 4)])
def test_nifti_mask_keeps_qform_and_sform_of_its_image(tmp_path: Path, codes: tuple[int, int]) -> None:
    source = nib.Nifti1Image(np.zeros((5, 6, 4), np.int16), None)
    source.header.set_zooms((0.9, 1.1, 4.5))
    source.set_qform(turned((0.2, 0, 0), (0.9, 1.1, 4.5), False, 3.0) if codes[0] else None, codes[0])
    source.set_sform(OBLIQUE if codes[1] else None, codes[1])
    source.header["descrip"] = b"name of a patient"
    nib.save(source, tmp_path / "image.nii.gz")
    volume = read_volume(tmp_path / "image.nii.gz")
    write_mask(np.ones((5, 6, 4), np.uint8), volume, tmp_path / "mask.nii.gz")
    want, got = load(tmp_path / "image.nii.gz"), load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(got.affine, want.affine, atol=1e-6)
    np.testing.assert_allclose(got.header.get_qform(), want.header.get_qform(), atol=1e-6)
    np.testing.assert_array_equal(got.header.get_sform(), want.header.get_sform())
    assert (int(got.header["qform_code"]), int(got.header["sform_code"])) == codes
    assert got.get_data_dtype() == np.uint8 and b"patient" not in bytes(got.header["descrip"])


@pytest.mark.parametrize("unit", ["meter", "micron", "mm", "unknown"])
@pytest.mark.parametrize("has_sform", [True, False])
def test_nifti_mask_keeps_the_unit_of_its_image(tmp_path: Path, unit: str, has_sform: bool) -> None:
    affine = turned((0.2, -0.1, 0.4), (0.9, 1.1, 4.5), True, -17.25)
    source = nib.Nifti1Image(np.zeros((5, 6, 4), np.int16), affine)
    source.set_sform(affine if has_sform else None, int(has_sform))
    source.header.set_xyzt_units(unit, "sec")
    nib.save(source, tmp_path / "image.nii")
    volume = read_volume(tmp_path / "image.nii")
    write_mask(np.ones((5, 6, 4), np.uint8), volume, tmp_path / "mask.nii")
    want, got = load(tmp_path / "image.nii"), load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(got.affine, want.affine)
    assert got.header.get_xyzt_units() == (unit, "unknown")
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii").affine, volume.affine)
    seen, expected = (sitk.ReadImage(tmp_path / name) for name in ("mask.nii", "image.nii"))
    assert (seen.GetSpacing(), seen.GetOrigin()) == (expected.GetSpacing(), expected.GetOrigin())
    # without the header it is a mask in millimetres, as in every other format
    write_mask(np.ones((5, 6, 4), np.uint8), Volume(volume.array, volume.affine), tmp_path / "plain.nii")
    assert load(tmp_path / "plain.nii").header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(load(tmp_path / "plain.nii").affine, volume.affine, rtol=1e-5, atol=1e-9)


def test_png_mask_has_rows_and_columns_of_its_picture(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 255, (7, 5)).astype(np.uint8)).save(tmp_path / "image.png")
    volume = read_volume(tmp_path / "image.png")
    labels = RNG.integers(0, 3, volume.array.shape).astype(np.uint8)
    write_mask(labels, volume, tmp_path / "mask.png")
    picture = Image.open(tmp_path / "mask.png")
    assert (picture.size, picture.mode) == ((5, 7), "L")
    np.testing.assert_array_equal(np.asarray(picture), labels[:, :, 0].T)
    with pytest.raises(ValueError, match="one slice"):
        write_mask(np.zeros((5, 6, 4), np.uint8), image(), tmp_path / "deep.png")
    with pytest.raises(ValueError, match="suffix"):
        write_map(np.zeros((5, 7, 1)), volume, tmp_path / "map.png")


@pytest.mark.parametrize(
    "mask", [np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6, 4), np.float32), np.full((5, 6, 4), 256), np.full((5, 6, 4), -1)]
)
def test_wrong_mask_is_refused_and_leaves_no_file(tmp_path: Path, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        write_mask(mask, image(), tmp_path / "mask.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_wrong_map_and_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NaN"):
        write_map(np.full((5, 6, 4), np.nan), image(), tmp_path / "map.nii.gz")
    with pytest.raises(ValueError, match="must be equal"):
        write_map(np.zeros((5, 6)), image(), tmp_path / "map.nii.gz")
    for name in ("mask.mha", "mask", "mask.gz"):
        with pytest.raises(ValueError, match="suffix"):
            write_mask(np.zeros((5, 6, 4), np.uint8), image(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mask(np.ones((5, 6, 4), np.uint8), image(), tmp_path / "mask.nii.gz")
    before = (tmp_path / "mask.nii.gz").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_mask(np.zeros((5, 6, 4), np.uint8), image(), tmp_path / "mask.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.nii.gz"]
    assert (tmp_path / "mask.nii.gz").read_bytes() == before


def test_folder_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_mask(np.zeros((5, 6, 4), np.uint8), image(), tmp_path / "none" / "mask.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_equal_masks_give_equal_bytes_and_usual_permissions(tmp_path: Path) -> None:
    for name in ("one.nii.gz", "two.nii.gz", "one.nrrd", "two.nrrd"):
        write_mask(np.ones((5, 6, 4), np.uint8), image(), tmp_path / name)
    for suffix in (".nii.gz", ".nrrd"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "one.nrrd").stat().st_mode == (tmp_path / "plain").stat().st_mode
