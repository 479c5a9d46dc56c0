"""A submitted label as tags: present from the first to the last slice that holds a class, absent where none does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from app_cdm.data.slices import find_slicing_axis
from app_cdm.data.volume import Volume, VolumeError
from lib.tags.record import StoredTag

GRID_TOLERANCE = 0.05
MAX_SHOWN = 5


def tags_of_mask(label: Volume, image: Volume, numbers: Mapping[str, Collection[int]]) -> dict[str, StoredTag]:
    """Tags of every class.

    Args:
        label: the label, on the image's grid, turned, flipped or cropped.
        image: the image's grid.
        numbers: class -> its values in the label.

    Returns:
        Class -> `[[first, last]]` in the image file's own voxel order along its slicing axis, or False.

    Raises:
        VolumeError: the label, an empty one too, does not lie on the image.
    """
    marked = np.argwhere(label.array)
    values = label.array[tuple(marked.T)]
    placed = _place(marked if len(marked) else _corners(label), label, image)[: len(marked), find_slicing_axis(image)]
    found: dict[str, StoredTag] = {}
    for name, own in numbers.items():
        slices = placed[np.isin(values, list(own))]
        found[name] = [[int(slices.min()), int(slices.max())]] if len(slices) else False
    return found


def check_values(label: Volume, numbers: Collection[int]) -> None:
    """Requires that a label holds 0 and these numbers alone; maps of probabilities, pictures and other masks hold something else.

    Raises:
        VolumeError: it does not.
    """
    others = np.setdiff1d(np.unique(label.array[label.array != 0]), list(numbers))
    if len(others):
        shown = ", ".join(f"{value:g}" for value in others[:MAX_SHOWN]) + (", ..." if len(others) > MAX_SHOWN else "")
        raise VolumeError(f"the label holds {shown}: neither numbers of classes nor of named segments, which are {sorted(numbers)}")


def label_to_image(label: Volume, image: Volume) -> np.ndarray:
    """Transform `(4, 4)` from the label's voxel indices to the image's.

    By the two affines; but a label of the image's shape whose affine does not cover the image voxel by voxel (turned and
    flipped at most) was written without a geometry, and is taken in the image's voxel order.
    """
    transform = np.linalg.inv(image.affine) @ label.affine
    if label.array.shape != image.array.shape:
        return np.asarray(transform)
    mapped = _corners(label) @ transform[:3, :3].T + transform[:3, 3]
    limits = np.asarray(image.array.shape) - 1
    is_covering = np.abs(mapped.min(axis=0)).max() < 0.5 and np.abs(mapped.max(axis=0) - limits).max() < 0.5
    is_aligned = np.abs(transform[:3, :3] - np.rint(transform[:3, :3])).max() < GRID_TOLERANCE
    return np.asarray(transform) if is_covering and is_aligned else np.eye(4)


def on_image_grid(label: Volume, image: Volume) -> np.ndarray:
    """A label that is turned, flipped or cropped against its image, voxel by voxel on the image's grid: `(X, Y, Z)` integers.

    Raises:
        VolumeError: its voxels are not the image's, or it lies beside the image.
    """
    marked = np.argwhere(label.array > 0)
    placed = _place(marked, label, image)
    reference = np.zeros(image.array.shape, dtype=np.int64)
    reference[tuple(placed.T)] = label.array[tuple(marked.T)]
    return reference


def _place(voxels: np.ndarray, label: Volume, image: Volume) -> np.ndarray:
    """Indices `(N, 3)` of voxels of a label as those of the image.

    Raises:
        VolumeError: the label's voxels are not the image's, or one of these lies beside the image.
    """
    transform = label_to_image(label, image)
    turn = np.rint(transform[:3, :3])
    is_turn = np.array_equal(np.abs(turn) @ np.ones(3), np.ones(3)) and np.abs(transform[:3, :3] - turn).max() < GRID_TOLERANCE
    if not is_turn:
        raise VolumeError(
            f"the label's voxels of {_shown_mm(label)} are not those of the image, {_shown_mm(image)}: submit it on the image's grid"
        )
    placed = np.rint(voxels @ turn.T + transform[:3, 3]).astype(int)
    if len(placed) and (placed.min() < 0 or (placed.max(axis=0) >= image.array.shape).any()):
        raise VolumeError("the label lies outside the image: submit it on the image's own grid")
    return placed


def _corners(volume: Volume) -> np.ndarray:
    return np.array(np.meshgrid(*([0, size - 1] for size in volume.array.shape), indexing="ij")).reshape(3, -1).T


def class_numbers(class_names: Sequence[str], label_info: object) -> dict[str, tuple[int, ...]]:
    """The values of each class in a submitted label: several where several segments have its name.

    Viewers name the segments in order, the first of which has value 1 (the `idx` that they add counts a background too);
    classes that they do not name have their alphabetical number, unless that value is another segment's.

    Args:
        class_names: the classes there are, alphabetically.
        label_info: `[{"name": ...}, ...]` as viewers send it; anything else is ignored.

    Returns:
        Class -> values; none for one that cannot be in it.
    """
    named = _segment_names(label_info)
    numbers: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(class_names, start=1):
        own = tuple(value for value, given in enumerate(named, start=1) if given == name)
        numbers[name] = own or ((number,) if number > len(named) else ())
    return numbers


def known_numbers(class_names: Sequence[str], label_info: object) -> set[int]:
    """The values that a submitted label may hold: of classes, and of segments with any name."""
    of_segments = {value for value, name in enumerate(_segment_names(label_info), start=1) if name}
    return of_segments.union(*class_numbers(class_names, label_info).values())


def _segment_names(label_info: object) -> list[object]:
    """Names of the segments in the order of their values from 1; None for one that has none."""
    segments = label_info if isinstance(label_info, list) else []
    return [item.get("name") if isinstance(item, dict) else None for item in segments]


def _shown_mm(volume: Volume) -> str:
    return " x ".join(f"{size:.2f}" for size in volume.spacing_mm) + " mm"
