"""A submitted label as tags: present from the first to the last slice that holds a class, absent where none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app_cdm.data.slices import find_slicing_axis
from app_cdm.data.volume import Volume, VolumeError
from lib.tags.record import StoredTag

GRID_TOLERANCE = 0.05
NOT_IN_LABEL = 0


def tags_of_mask(label: Volume, image: Volume, numbers: Mapping[str, int]) -> dict[str, StoredTag]:
    """Tags of every class.

    Args:
        label: the label, on the image's grid, turned, flipped or cropped.
        image: the image's grid.
        numbers: class -> its value in the label.

    Returns:
        Class -> `[[first, last]]` in the image file's own voxel order along its slicing axis, or False.

    Raises:
        VolumeError: the label does not lie on the image.
    """
    axis = find_slicing_axis(image)
    transform = label_to_image(label, image)
    found: dict[str, StoredTag] = {}
    for name, value in numbers.items():
        voxels = np.argwhere(label.array == value)
        if value == NOT_IN_LABEL or not len(voxels):
            found[name] = False
            continue
        voxels = np.rint(voxels @ transform[:3, :3].T + transform[:3, 3])
        if voxels.min() < 0 or (voxels.max(axis=0) >= image.array.shape).any():
            raise VolumeError(f"the label's class {name!r} lies outside the image: submit it on the image's own grid")
        found[name] = [[int(voxels[:, axis].min()), int(voxels[:, axis].max())]]
    return found


def label_to_image(label: Volume, image: Volume) -> np.ndarray:
    """Transform `(4, 4)` from the label's voxel indices to the image's.

    By the two affines; but a label of the image's shape whose affine does not cover the image voxel by voxel (turned and
    flipped at most) was written without a geometry, and is taken in the image's voxel order.
    """
    transform = np.linalg.inv(image.affine) @ label.affine
    if label.array.shape != image.array.shape:
        return np.asarray(transform)
    corners = np.array(np.meshgrid(*([0, size - 1] for size in label.array.shape), indexing="ij")).reshape(3, -1).T
    mapped = corners @ transform[:3, :3].T + transform[:3, 3]
    limits = np.asarray(image.array.shape) - 1
    is_covering = np.abs(mapped.min(axis=0)).max() < 0.5 and np.abs(mapped.max(axis=0) - limits).max() < 0.5
    is_aligned = np.abs(transform[:3, :3] - np.rint(transform[:3, :3])).max() < GRID_TOLERANCE
    return np.asarray(transform) if is_covering and is_aligned else np.eye(4)


def on_image_grid(label: Volume, image: Volume) -> np.ndarray:
    """A label that is turned, flipped or cropped against its image, voxel by voxel on the image's grid: `(X, Y, Z)` integers.

    Raises:
        VolumeError: its voxels are not the image's, or it lies beside the image.
    """
    transform = label_to_image(label, image)
    turn = np.rint(transform[:3, :3])
    is_turn = np.array_equal(np.abs(turn) @ np.ones(3), np.ones(3)) and np.abs(transform[:3, :3] - turn).max() < GRID_TOLERANCE
    if not is_turn:
        raise VolumeError(
            f"the label's voxels of {_shown_mm(label)} are not those of the image, {_shown_mm(image)}: submit it on the image's grid"
        )
    marked = np.argwhere(label.array > 0)
    placed = np.rint(marked @ turn.T + transform[:3, 3]).astype(int)
    if len(placed) and (placed.min() < 0 or (placed.max(axis=0) >= image.array.shape).any()):
        raise VolumeError("the label lies outside the image: submit it on the image's own grid")
    reference = np.zeros(image.array.shape, dtype=np.int64)
    reference[tuple(placed.T)] = label.array[tuple(marked.T)]
    return reference


def class_numbers(class_names: Sequence[str], label_info: object) -> dict[str, int]:
    """The value of each class in a submitted label.

    Viewers name the segments in order, the first of which has value 1 (the `idx` that they add counts a background too);
    classes that they do not name have their alphabetical number, unless that value is another segment's.

    Args:
        class_names: the classes there are, alphabetically.
        label_info: `[{"name": ...}, ...]` as viewers send it; anything else is ignored.

    Returns:
        Class -> value; `NOT_IN_LABEL` for one that cannot be in it.
    """
    segments = label_info if isinstance(label_info, list) else []
    named = [item.get("name") if isinstance(item, dict) else None for item in segments]
    numbers: dict[str, int] = {}
    for number, name in enumerate(class_names, start=1):
        if name in named:
            numbers[name] = named.index(name) + 1
        else:
            numbers[name] = number if number > len(named) else NOT_IN_LABEL
    return numbers


def _shown_mm(volume: Volume) -> str:
    return " x ".join(f"{size:.2f}" for size in volume.spacing_mm) + " mm"
