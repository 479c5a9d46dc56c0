"""Reading NIfTI, NRRD and pictures: geometry, voxel order and every refusal."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from app_cdm.data.volume import Volume, VolumeError, read_volume

# ITK's compiled modules warn while they load, and crash where that warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
load: Any = nib.load
RNG = np.random.default_rng(0)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(spacing: tuple[float, float, float] = (0.9, 1.1, 4.5), flips: tuple[int, int, int] = (1, 1, 1)) -> np.ndarray:
    """A turned, anisotropic, shifted affine."""
    angle, tilt = np.deg2rad(20.0), np.deg2rad(-12.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    nod = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ nod @ np.diag(np.multiply(spacing, flips))
    affine[:3, 3] = (-31.5, 42.25, 7.0)
    return affine


AFFINES = [
    np.eye(4),
    np.diag([-1.0, -1.0, 3.0, 1.0]),
    oblique(),
    oblique(flips=(-1, 1, 1)),
    oblique(flips=(1, -1, -1)),
    oblique((5.0, 0.5, 0.5)),
]


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Writes an array as NIfTI-1."""
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def sitk_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """The same image in SimpleITK, an oracle of its own for LPS geometry."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_nifti_keeps_voxel_order_and_affine(tmp_path: Path, affine: np.ndarray, suffix: str) -> None:
    array = RNG.integers(0, 4000, (5, 7, 3)).astype(np.int16)
    volume = read_volume(save_nifti(tmp_path / f"image{suffix}", array, affine))
    assert (volume.kind, volume.array.dtype) == ("nifti", np.float32)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_allclose(volume.spacing_mm, np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-5)


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("compress", [False, True])
def test_nrrd_equals_what_simpleitk_wrote(tmp_path: Path, affine: np.ndarray, compress: bool) -> None:
    array = RNG.integers(0, 4000, (5, 7, 3)).astype(np.int16)
    sitk.WriteImage(sitk_image(array, affine), tmp_path / "image.nrrd", useCompression=compress)
    volume = read_volume(tmp_path / "image.nrrd")
    assert volume.kind == "nrrd"
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-9)


def test_nrrd_in_ras_space_is_the_same_place_as_in_lps(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 3, 2)).astype(np.uint8)
    for name, space, x, y in (("lps", "left-posterior-superior", -2, -3), ("ras", "right-anterior-superior", 2, 3)):
        header = f"NRRD0004\ntype: uint8\ndimension: 3\nspace: {space}\nsizes: 4 3 2\nspace directions: ({x},0,0) (0,{y},0) (0,0,5)\n"
        header += f"encoding: raw\nspace origin: ({x * 10},{y * 10},7)\n\n"
        (tmp_path / f"{name}.nrrd").write_bytes(header.encode() + array.tobytes(order="F"))
        volume = read_volume(tmp_path / f"{name}.nrrd")
        np.testing.assert_array_equal(volume.array, array)
        np.testing.assert_allclose(volume.affine, [[2, 0, 0, 20], [0, 3, 0, 30], [0, 0, 5, 7], [0, 0, 0, 1]])


def test_detached_nrrd_reads_its_data_file_only_from_its_own_folder(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 3, 2)).astype(np.uint8)
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 3 2\nspacings: 1 2 3\nencoding: raw\ndata file: {}\n"
    (tmp_path / "image.raw").write_bytes(array.tobytes(order="F"))
    (tmp_path / "image.nhdr").write_text(header.format("image.raw"))
    np.testing.assert_array_equal(read_volume(tmp_path / "image.nhdr").array, array)
    for place in ("/etc/hostname", "../image.raw", "LIST\nimage.raw"):
        (tmp_path / "evil.nhdr").write_text(header.format(place))
        with pytest.raises(VolumeError, match="same folder"):
            read_volume(tmp_path / "evil.nhdr")


NRRD_HEADER = "NRRD0004{end}type: uint8{end}dimension: 3{end}sizes: 4 3 2{end}spacings: 1 2 3{end}encoding: raw{end}"


@pytest.mark.parametrize("key", ["data file", "datafile", "Data File", "DATAFILE"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("place", ["{secret}", "../secret.raw", "LIST 3{end}{secret}"])
def test_no_spelling_of_a_header_sends_the_reader_to_another_folder(tmp_path: Path, key: str, end: str, place: str) -> None:
    (tmp_path / "uploads").mkdir()
    secret, path = tmp_path / "secret.raw", tmp_path / "uploads" / "evil.nrrd"
    secret.write_bytes(bytes(24))
    header = NRRD_HEADER.format(end=end) + f"{key}: " + place.format(end=end, secret=secret) + end
    path.write_text(header, newline="")
    assert sitk.ReadImage(path).GetSize() == (4, 3, 2), "the reader itself follows it"
    with pytest.raises(VolumeError, match="same folder"):
        read_volume(path)


def test_nrrd_header_too_long_to_be_checked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(24))
    path, comments = tmp_path / "uploads" / "evil.nrrd", "# nothing to see here\n" * 50_000
    path.write_text(f"{NRRD_HEADER.format(end=chr(10))}{comments}data file: {tmp_path / 'secret.raw'}\n\n")
    assert sitk.ReadImage(path).GetSize() == (4, 3, 2), "the reader itself follows it"
    with pytest.raises(VolumeError, match="no blank line ends the header within 1 MiB"):
        read_volume(path)
    path.write_text(f"{NRRD_HEADER.format(end=chr(10))}{comments[:1_000_000]}\n\n")
    with path.open("ab") as file:
        file.write(bytes(range(24)) + b"\ndata file: /etc/passwd\n")
    np.testing.assert_array_equal(read_volume(path).array.ravel(order="F"), range(24))


def test_two_dimensional_nrrd_has_one_slice(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 3)).astype(np.uint8)
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing((0.5, 0.7))
    sitk.WriteImage(image, tmp_path / "flat.nrrd")
    volume = read_volume(tmp_path / "flat.nrrd")
    np.testing.assert_array_equal(volume.array, array[:, :, None])
    np.testing.assert_allclose(volume.affine, np.diag([-0.5, -0.7, 1, 1]))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 4, 1), (6, 5, 4, 1, 1), (1, 6, 5)])
def test_nifti_axes_of_length_one_are_no_obstacle(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.normal(size=shape).astype(np.float32)
    volume = read_volume(save_nifti(tmp_path / "image.nii.gz", array))
    assert volume.array.ndim == 3
    np.testing.assert_array_equal(volume.array.ravel(), array.ravel())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_nifti_types_and_scaling(tmp_path: Path, dtype: type) -> None:
    image = nib.Nifti1Image(np.arange(24).reshape(2, 3, 4).astype(dtype), np.eye(4))
    image.header.set_slope_inter(2.0, -3.0)
    nib.save(image, tmp_path / "scaled.nii")
    nifti2 = nib.Nifti2Image(np.arange(24).reshape(2, 3, 4).astype(dtype), np.eye(4))
    nib.save(nifti2, tmp_path / "two.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "scaled.nii").array, load(tmp_path / "scaled.nii").get_fdata(), atol=1e-4)
    np.testing.assert_array_equal(read_volume(tmp_path / "two.nii").array.ravel(), np.arange(24))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("scaling", [(2.0, -3.0), (1.0, -1024.0), (0.1, 0.0), (1.0, 0.0)])
def test_scaling_is_nibabels_to_the_bit_in_half_the_memory(tmp_path: Path, dtype: type, scaling: tuple[float, float]) -> None:
    array = RNG.integers(0, 200, (96, 96, 150)).astype(dtype)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(*scaling)
    nib.save(image, tmp_path / "scaled.nii")
    expected = np.asarray(load(tmp_path / "scaled.nii").dataobj).astype(np.float32)
    tracemalloc.start()
    volume = read_volume(tmp_path / "scaled.nii")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (volume.array == expected).all() and volume.array.strides == expected.strides
    if dtype != np.float64:
        assert peak < array.nbytes + 1.6 * array.size * 4, "nothing of the size of the volume but what is stored and what is kept"


def test_sform_wins_even_where_it_disagrees_with_spacing_and_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), None)
    image.set_sform(oblique(), 1)
    image.set_qform(np.diag([2.0, 2.0, 2.0, 1.0]), 1)
    nib.save(image, tmp_path / "image.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "image.nii").affine, oblique(), atol=1e-5)


def test_png_is_columns_by_rows_as_displayed(tmp_path: Path) -> None:
    picture = RNG.integers(0, 255, (4, 6)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "grey.png")
    volume = read_volume(tmp_path / "grey.png")
    assert (volume.kind, volume.array.shape) == ("image", (6, 4, 1))
    np.testing.assert_array_equal(volume.array[:, :, 0].T, picture)
    np.testing.assert_array_equal(volume.affine, np.diag([-1, -1, 1, 1]))


def test_colour_becomes_luminance_and_alpha_is_dropped(tmp_path: Path) -> None:
    colour = RNG.integers(0, 255, (4, 6, 4)).astype(np.uint8)
    expected = colour[..., :3] @ np.array([0.299, 0.587, 0.114])
    Image.fromarray(colour).save(tmp_path / "rgba.png")
    Image.fromarray(colour[..., :3]).save(tmp_path / "rgb.png")
    for name in ("rgba.png", "rgb.png"):
        np.testing.assert_allclose(read_volume(tmp_path / name).array[:, :, 0].T, expected, atol=1.0)


def test_sixteen_bit_palette_and_jpeg(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65535, (4, 6)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "deep.png").array[:, :, 0].T, deep)
    palette = Image.fromarray(np.full((4, 6, 3), 120, np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png")
    assert set(np.unique(read_volume(tmp_path / "palette.png").array)) == {120.0}
    Image.fromarray(np.full((4, 6), 77, np.uint8)).save(tmp_path / "flat.JPG", format="JPEG")
    np.testing.assert_allclose(read_volume(tmp_path / "flat.JPG").array, 77, atol=2)


def test_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    for name in ("none.nii.gz", "none.nrrd", "none.png", "none.dcm", "none"):
        with pytest.raises(FileNotFoundError):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.png", "a.jpg", "a.dcm", "a.txt", "a"])
@pytest.mark.parametrize("content", [b"", b"this is a text file, renamed\n" * 40])
def test_other_content_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError, match=f"^{name}: ") as caught:
        read_volume(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz", "cut.nrrd", "cut.png"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    array = RNG.integers(0, 4000, (40, 40, 10)).astype(np.int16)
    if name.endswith("nrrd"):
        sitk.WriteImage(sitk_image(array, np.eye(4)), tmp_path / name)
    elif name.endswith("png"):
        Image.fromarray(array[:, :, 0].astype(np.uint8)).save(tmp_path / name)
    else:
        save_nifti(tmp_path / name, array)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(VolumeError):
        read_volume(tmp_path / name)


def test_gzip_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"no image" * 100))
    with pytest.raises(VolumeError, match="cannot be read as NIfTI"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 4, 3), np.float32), r"4D image of shape \(4, 4, 4, 3\)"),
        (np.zeros((4, 4, 4, 1, 3), np.float32), "5D image"),
        (np.zeros((4, 4, 4), np.complex64), "complex"),
        (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour"),
        (np.zeros((4, 0, 4), np.float32), "holds no image"),
        (np.full((2, 3, 4), np.nan, np.float32), "all 24 voxels are NaN"),
        (np.array([[[0, np.nan, np.inf, 1]]], np.float32), "2 of 4 voxels are NaN or infinite"),
        (np.array([[[0, 1e300]]], np.float64), "1 of 2 voxels"),
    ],
)
def test_unusable_nifti_is_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        read_volume(save_nifti(tmp_path / "image.nii", array))


@pytest.mark.parametrize("broken", [np.diag([1.0, 1.0, 0.0, 1.0]), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])])
def test_singular_affine_is_refused(tmp_path: Path, broken: np.ndarray) -> None:
    content = bytearray(save_nifti(tmp_path / "image.nii", np.zeros((4, 4, 4), np.float32)).read_bytes())
    content[280 : 280 + 48] = broken[:3].astype("<f4").tobytes()
    (tmp_path / "image.nii").write_bytes(content)
    with pytest.raises(VolumeError, match="affine is singular"):
        read_volume(tmp_path / "image.nii")


def test_nrrd_time_series_colour_and_zero_spacing_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), tmp_path / "rgb.nrrd")
    with pytest.raises(VolumeError, match="3 values a voxel"):
        read_volume(tmp_path / "rgb.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.uint8), isVector=False), tmp_path / "time.nrrd")
    with pytest.raises(VolumeError, match="4D image"):
        read_volume(tmp_path / "time.nrrd")
    header = "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\nencoding: raw\n"
    header += "space directions: (1,0,0) (0,1,0) (0,0,0)\nspace origin: (0,0,0)\n\n"
    (tmp_path / "flat.nrrd").write_bytes(header.encode() + bytes(8))
    with pytest.raises(VolumeError):
        read_volume(tmp_path / "flat.nrrd")


def test_volume_without_a_path_is_possible() -> None:
    volume = Volume(np.zeros((2, 2, 2), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert (volume.spacing_mm, volume.kind, volume.path) == ((1.0, 2.0, 3.0), "nifti", None)


def test_a_small_file_that_claims_a_huge_volume_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((32767, 32767, 4))
    header["vox_offset"] = 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(VolumeError, match="more than 1073741824 voxels"):
        read_volume(path)
