"""A submitted label as tags, in the image file's own slice order, however the label is turned."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app_cdm.data.header import read_grid
from app_cdm.data.volume import Volume, VolumeError, read_volume, write_mask
from lib.tags.mask import check_values, class_numbers, known_numbers, tags_of_mask
from tests.host.studies import AFFINE, SHAPE

NUMBERS = {"edema": (1,), "tumor": (2,), "void": (3,)}


def label_array() -> np.ndarray:
    array = np.zeros(SHAPE, dtype=np.float32)
    array[5:9, 10, 1] = 1
    array[5:9, 12, 4] = 1
    array[3, 3, 5] = 2
    return array


EXPECTED = {"edema": [[1, 4]], "tumor": [[5, 5]], "void": False}


def image() -> Volume:
    return Volume(np.broadcast_to(np.float32(0), SHAPE), AFFINE)


def test_present_from_first_to_last_and_absent_where_empty() -> None:
    assert tags_of_mask(Volume(label_array(), AFFINE), image(), NUMBERS) == EXPECTED


@pytest.mark.parametrize("code", ["RAS", "LPS", "SRA", "PIR", "ILA"])
def test_every_orientation_of_the_label_gives_the_same_tags(code: str) -> None:
    source = nib.Nifti1Image(label_array(), AFFINE)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(code))
    turned = source.as_reoriented(turn)
    label = Volume(np.asarray(turned.dataobj), turned.affine)
    assert tags_of_mask(label, image(), NUMBERS) == EXPECTED


@pytest.mark.parametrize("code", ["RAS", "LPI", "SRA", "IPR"])
def test_every_orientation_of_the_image_counts_in_its_own_slices(code: str) -> None:
    source = nib.Nifti1Image(label_array(), AFFINE)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(code))
    turned = source.as_reoriented(turn)
    grid = Volume(np.broadcast_to(np.float32(0), turned.shape), turned.affine)
    axis = int(np.argmax(grid.spacing_mm))
    slices = np.flatnonzero((np.asarray(turned.dataobj) == 1).any(axis=tuple({0, 1, 2} - {axis})))
    for label in (Volume(label_array(), AFFINE), Volume(np.asarray(turned.dataobj), turned.affine)):
        assert tags_of_mask(label, grid, {"edema": (1,)}) == {"edema": [[int(slices[0]), int(slices[-1])]]}


def test_cropped_label_is_placed_by_its_affine() -> None:
    shift = np.eye(4)
    shift[:3, 3] = (3, 2, 1)
    cropped = Volume(label_array()[3:20, 2:20, 1:6], AFFINE @ shift)
    assert tags_of_mask(cropped, image(), NUMBERS) == EXPECTED


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])])
def test_label_without_geometry_is_taken_in_the_images_order(affine: np.ndarray) -> None:
    assert tags_of_mask(Volume(label_array(), affine), image(), NUMBERS) == EXPECTED


def test_label_of_another_place_is_refused() -> None:
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] += 500
    part = label_array()[:30]
    for array, numbers in ((part, NUMBERS), (part, {"void": (3,)}), (0 * part, NUMBERS)):
        with pytest.raises(VolumeError, match="the label lies outside the image"):
            tags_of_mask(Volume(array, elsewhere), image(), numbers)


def test_label_of_other_voxels_is_refused_though_it_is_empty() -> None:
    label = Volume(np.zeros((8, 8, 3), dtype=np.float32), AFFINE @ np.diag([2.0, 2.0, 1.0, 1.0]))
    with pytest.raises(VolumeError, match="are not those of the image"):
        tags_of_mask(label, image(), NUMBERS)


@pytest.mark.parametrize(("value", "shown"), [(255, "255"), (0.7, "0.7"), (7, "7"), (-1, "-1"), (np.nan, "nan")])
def test_label_with_values_that_are_no_class_is_refused(value: float, shown: str) -> None:
    label = Volume(label_array(), AFFINE)
    check_values(label, {1, 2})
    label.array[0, 0, 0] = value
    with pytest.raises(VolumeError, match=rf"the label holds {shown}: neither .* \[1, 2\]"):
        check_values(label, {1, 2})


def test_a_picture_is_refused_with_some_of_its_values() -> None:
    picture = Volume(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), AFFINE)
    with pytest.raises(VolumeError, match=r"holds 3, 4, 5, 6, 7, \.\.\.: neither"):
        check_values(picture, {1, 2})


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_written_files_give_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"label{suffix}"
    write_mask(label_array().astype(np.uint8), image(), path)
    assert tags_of_mask(read_volume(path), read_grid(path), NUMBERS) == EXPECTED


def test_class_numbers_follow_the_order_in_which_a_viewer_names_its_segments() -> None:
    names = ("edema", "tumor")
    assert class_numbers(names, None) == class_numbers(names, []) == class_numbers(names, "x") == {"edema": (1,), "tumor": (2,)}
    swapped = [{"name": "tumor", "idx": 2}, {"name": "edema", "idx": 3}]  # idx counts a background
    assert class_numbers(names, swapped) == {"edema": (2,), "tumor": (1,)}
    assert class_numbers(names, [{"name": "edema", "idx": 1}]) == {"edema": (1,), "tumor": (2,)}
    assert class_numbers(names, [{"name": "Segment_1"}, {"name": "edema"}]) == {"edema": (2,), "tumor": ()}
    assert tags_of_mask(Volume(label_array(), AFFINE), image(), {"tumor": ()}) == {"tumor": False}


def test_two_segments_of_one_class_both_count() -> None:
    numbers = class_numbers(("edema", "tumor"), [{"name": "edema"}, {"name": "edema"}])
    assert numbers == {"edema": (1, 2), "tumor": ()}
    assert tags_of_mask(Volume(label_array(), AFFINE), image(), numbers) == {"edema": [[1, 5]], "tumor": False}


def test_a_label_may_hold_classes_and_segments_of_any_name() -> None:
    assert known_numbers(("edema", "tumor"), None) == {1, 2}
    assert known_numbers(("edema", "tumor"), [{"name": "tumor"}, {}, {"name": "Segment_3"}]) == {1, 3}
    assert known_numbers(("edema", "tumor"), [{"name": "edema"}]) == {1, 2}
