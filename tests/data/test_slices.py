"""Volume to slices and back: every orientation, spacing, crop and axis; what is put back lies where it came from."""

from __future__ import annotations

import itertools

import nibabel.orientations as orientations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cdm.config import PreprocessSettings
from app_cdm.data import slices as slices_module
from app_cdm.data.slices import cut_slices, find_slicing_axis
from app_cdm.data.volume import Volume, VolumeError

CODES = ["".join(c) for p in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*p)]
WHOLE = PreprocessSettings(image_size=32, crop_foreground=False, lower_percentile=0.0, upper_percentile=100.0)


def oriented_affine(code: str, spacing: tuple[float, float, float], tilt_degrees: float = 0.0) -> np.ndarray:
    """Affine of a file whose voxel axes point to `code`, with that spacing along them, turned about two axes."""
    affine = np.zeros((4, 4))
    for axis, letter in enumerate(code):
        world, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[letter]
        affine[world, axis] = sign * spacing[axis]
    c, s = np.cos(np.deg2rad(tilt_degrees)), np.sin(np.deg2rad(tilt_degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3], affine[3, 3] = (-31.5, 42.25, 7.0), 1.0
    return affine


def body_with_block(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A dim body off the centre, and in it a bright block without any symmetry; the block is also given as a mask."""
    array, block = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
    array[tuple(slice(round(0.1 * n), round(0.95 * n)) for n in shape)] = 100.0
    block[tuple(slice(round(a * n), round(b * n)) for n, a, b in zip(shape, (0.2, 0.55, 0.3), (0.45, 0.85, 0.7), strict=True))] = True
    array[block] = 300.0
    return array, block


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("tilt", [0.0, 17.0])
@pytest.mark.parametrize("code", CODES)
def test_block_put_back_overlaps_itself(code: str, tilt: float) -> None:
    array, block = body_with_block((20, 26, 14))
    volume = Volume(array, oriented_affine(code, (1.3, 0.8, 2.5), tilt))
    for axis in (-1, 0, 1, 2):
        stack = cut_slices(volume, PreprocessSettings(image_size=64), axis)
        back = stack.geometry.to_volume(stack.slices[:, 0], fill=-1.0)
        assert back.shape == array.shape
        assert dice(back > 0, block) > 0.9
        assert stack.geometry.slicing_axis == (2 if axis < 0 else axis)
        assert stack.geometry.slice_spacing_mm == pytest.approx((1.3, 0.8, 2.5)[axis])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("code", CODES)
def test_put_back_is_exact_where_nothing_is_resized(code: str, axis: int) -> None:
    shape = [32, 32, 32]
    shape[axis] = 5
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    array.flat[:2] = 0.0, 1.0
    stack = cut_slices(Volume(array, oriented_affine(code, (1.0, 1.0, 1.0), 8.0)), WHOLE, axis)
    foreground = array[array > np.percentile(array, 0.1) + 0.1 * np.subtract(*np.percentile(array, [99.5, 0.1]))]
    expected = ((array - foreground.min()) * 2 / (foreground.max() - foreground.min()) - 1).clip(-1, 1)
    np.testing.assert_allclose(stack.geometry.to_volume(stack.slices[:, 0]), expected, atol=2e-6)


@pytest.mark.parametrize("code", CODES)
def test_slices_are_displayed_as_radiologists_expect(code: str) -> None:
    shape = (9, 10, 11)
    affine = oriented_affine(code, (1.0, 1.0, 1.0))
    array = np.zeros(shape, dtype=np.float32)
    array[1:-1, 1:-1, 1:-1] = 1.0
    corner = tuple(n - 1 if c in "RAS" else 0 for n, c in zip(shape, code, strict=True))  # right, anterior, superior
    array[corner] = 50.0
    for plane, normal in (("axial", "SI"), ("coronal", "AP"), ("sagittal", "RL")):
        axis = next(i for i, letter in enumerate(code) if letter in normal)
        stack = cut_slices(Volume(array, affine), WHOLE.replace(image_size=16), axis)
        index, row, column = (int(i) for i in np.unravel_index(int(stack.slices[:, 0].argmax()), stack.slices[:, 0].shape))
        top, left = stack.geometry.padding
        is_first = {"axial": (False, True, True), "coronal": (True, True, True), "sagittal": (True, True, True)}[plane]
        assert (index < shape[axis] / 2, row - top < 8, column - left < 8) == is_first, plane


@pytest.mark.parametrize("code", CODES)
def test_file_order_of_slices(code: str) -> None:
    array = np.ones((16, 16, 7), dtype=np.float32) * np.arange(2, 9, dtype=np.float32)
    stack = cut_slices(Volume(array, oriented_affine(code, (1.0, 1.0, 4.0))), WHOLE)
    brightness = stack.slices.mean(dim=(1, 2, 3)).numpy()
    in_file_order = stack.geometry.to_file_order(brightness)
    assert (np.diff(in_file_order) >= 0).all()
    assert in_file_order[-1] > in_file_order[0] + 1
    np.testing.assert_array_equal(stack.geometry.to_file_order(in_file_order), brightness)
    assert stack.geometry.is_reversed == (code[2] in "IAR")


def test_positions_run_from_first_to_last_slice_with_content_whatever_the_order_of_the_file() -> None:
    array = np.zeros((16, 16, 12), dtype=np.float32)
    array[3:13, 3:13, 2:9] = np.random.default_rng(0).random((10, 10, 7)) + 1
    up = cut_slices(Volume(array, oriented_affine("RAS", (1, 1, 5))), WHOLE)
    down = cut_slices(Volume(array[:, :, ::-1].copy(), oriented_affine("RAI", (1, 1, 5))), WHOLE)
    expected = np.clip((np.arange(12) - 2) / 6, 0, 1)
    np.testing.assert_allclose(up.positions, expected, atol=1e-6)
    np.testing.assert_allclose(down.positions, expected, atol=1e-6)
    torch.testing.assert_close(up.slices, down.slices)


def test_single_slice_has_no_position() -> None:
    array, block = body_with_block((40, 30, 1))
    block[10:18, 17:25] = True
    array[block] = 300.0
    stack = cut_slices(Volume(array, np.eye(4), "image"), PreprocessSettings(image_size=32))
    assert stack.slices.shape == (1, 1, 32, 32)
    assert stack.positions.isnan().all()
    assert dice(stack.geometry.to_volume(stack.slices[:, 0], fill=-1.0) > 0, block) > 0.9


def test_physical_aspect_is_kept_and_the_rest_is_background() -> None:
    rows, columns = np.mgrid[0:40, 0:80]
    disc = ((rows - 20) * 2.0) ** 2 + ((columns - 40) * 0.5) ** 2 < 15.0**2  # round in mm: 40 x 2 mm by 80 x 0.5 mm
    stack = cut_slices(
        Volume(disc.astype(np.float32)[:, :, None] * 9, np.diag([2.0, 0.5, 3.0, 1.0]), "image"), WHOLE.replace(image_size=64)
    )
    image = stack.slices[0, 0].numpy()
    height, width = (image > 0).any(axis=1).sum(), (image > 0).any(axis=0).sum()
    assert abs(int(height) - int(width)) <= 2
    assert sorted(stack.geometry.resized) == [32, 64]
    top, left = stack.geometry.padding
    assert top + left == 16
    is_padding = np.ones(image.shape, dtype=bool)
    is_padding[top : top + stack.geometry.resized[0], left : left + stack.geometry.resized[1]] = False
    assert (image[is_padding] == -1).all()


def test_crop_is_the_bounding_box_of_the_foreground_with_its_margin() -> None:
    array = np.zeros((100, 80, 6), dtype=np.float32)
    array[10:60, 20:50, :] = 100.0 + np.arange(6)
    stack = cut_slices(Volume(array, oriented_affine("LPS", (1, 1, 5))), PreprocessSettings(image_size=32, crop_margin=0.1))
    assert stack.geometry.crop == (15, 55, 5, 65)  # rows follow the file's second axis; margin 5 = 0.1 x 50
    back = stack.geometry.to_volume(torch.ones(6, 32, 32), fill=-7.0)
    np.testing.assert_allclose(back[5:65, 15:55], 1, atol=1e-6)
    assert (back == -7).sum() == back.size - 60 * 40 * 6


def test_speck_outside_the_body_does_not_widen_the_crop() -> None:
    array = np.zeros((64, 64, 20), dtype=np.float32)
    array[16:48, 16:48] = 50.0
    array[2, 2, 3] = 50.0
    crop = cut_slices(Volume(array, np.diag([1, 1, 4.0, 1])), PreprocessSettings(crop_margin=0.0)).geometry.crop
    assert crop == (16, 48, 16, 48)


@pytest.mark.parametrize(
    ("shape", "spacing", "code", "expected"),
    [
        ((32, 32, 10), (1, 1, 5), "RAS", 2),
        ((10, 32, 32), (6, 0.5, 0.5), "RAS", 0),
        ((32, 10, 32), (0.5, 6, 0.5), "LIP", 1),
        ((32, 32, 32), (1, 1, 1), "RAS", 2),  # all equal: head-foot
        ((32, 32, 32), (1, 1, 1), "SRA", 0),
        ((32, 32, 32), (1, 1, 1), "RSA", 1),
        ((32, 32, 32), (2, 2, 1), "ARS", 1),  # neither of the largest is head-foot: the last of them
        ((32, 32, 1), (1, 1, 1), "ASR", 2),  # one sagittal slice with cubic voxels
        ((32, 32, 1), (1, 1, 0.2), "RAS", 2),  # one slice thinner than its pixels
        ((1, 32, 32), (1, 1, 1), "RAS", 0),
    ],
)
def test_slicing_axis(shape: tuple[int, int, int], spacing: tuple[float, float, float], code: str, expected: int) -> None:
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    volume = Volume(array, oriented_affine(code, spacing))
    assert find_slicing_axis(volume) == expected
    assert cut_slices(volume, WHOLE).geometry.slicing_axis == expected


def test_normalisation_does_not_depend_on_the_unit_of_intensity() -> None:
    array, _ = body_with_block((30, 30, 8))
    array += np.random.default_rng(1).normal(0, 5, array.shape).astype(np.float32)
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    plain = cut_slices(Volume(array, affine), PreprocessSettings())
    scaled = cut_slices(Volume(array * 37.0 - 1024.0, affine), PreprocessSettings())
    torch.testing.assert_close(plain.slices, scaled.slices, atol=1e-4, rtol=0)
    assert plain.slices.min() == -1
    assert plain.slices.max() > 0.99


@pytest.mark.parametrize("value", [0.0, -3.5, 1e6])
def test_constant_image_is_refused(value: float) -> None:
    with pytest.raises(VolumeError, match="single intensity"):
        cut_slices(Volume(np.full((16, 16, 4), value, dtype=np.float32), np.eye(4)), PreprocessSettings())


def test_axis_across_a_thin_stack_is_refused() -> None:
    array = np.random.default_rng(0).random((32, 32, 4)).astype(np.float32)
    with pytest.raises(VolumeError, match=r"axis 0 are only .* choose another slicing axis"):
        cut_slices(Volume(array, np.eye(4)), PreprocessSettings(), slicing_axis=0)


def test_tiny_bright_spot_in_an_empty_image_is_found_between_the_sampled_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices_module, "MAX_SAMPLED_VOXELS", 500)  # every fourth voxel, as in a volume of 128 million
    array = np.zeros((32, 32, 32), dtype=np.float32)
    array[9:12, 9:12, 9:12] = 5.0
    stack = cut_slices(Volume(array, np.eye(4)), WHOLE)
    assert dice(stack.geometry.to_volume(stack.slices[:, 0], fill=-1.0) > 0, array > 0) == 1.0


def test_more_slices_than_one_part_of_the_resizing() -> None:
    array = np.random.default_rng(0).random((16, 16, 150)).astype(np.float32)
    stack = cut_slices(Volume(array, np.eye(4)), WHOLE.replace(image_size=16), slicing_axis=2)
    correlation = np.corrcoef(stack.geometry.to_volume(stack.slices[:, 0]).ravel(), array.ravel())[0, 1]
    assert correlation > 0.99


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(8, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8.0)] * 3),
    code=st.sampled_from(CODES),
    axis=st.integers(-1, 2),
    size=st.sampled_from([16, 24, 64]),
    seed=st.integers(0, 99),
)
def test_any_volume_gives_usable_slices_and_a_volume_back(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], code: str, axis: int, size: int, seed: int
) -> None:
    array = np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)
    stack = cut_slices(Volume(array, oriented_affine(code, spacing, 5.0)), PreprocessSettings(image_size=size), axis)
    assert stack.slices.shape == (shape[stack.geometry.slicing_axis], 1, size, size)
    assert stack.slices.isfinite().all()
    assert stack.slices.abs().max() <= 1 + 1e-6
    assert ((stack.positions >= 0) & (stack.positions <= 1)).all()
    back = stack.geometry.to_volume(stack.slices[:, 0], fill=-1.0)
    assert back.shape == shape
    assert back.dtype == np.float32
    assert np.abs(back).max() <= 1 + 1e-6


def test_codes_are_what_nibabel_calls_them() -> None:
    assert len(CODES) == 48
    for code in CODES:
        assert "".join(orientations.aff2axcodes(oriented_affine(code, (1, 2, 3), 10.0))) == code
