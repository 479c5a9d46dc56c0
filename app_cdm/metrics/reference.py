"""Datasets with expert masks, for evaluation only: images, reference masks and image-level tags of one split."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app_cdm.data.volume import Volume, VolumeError, read_volume

TAGS = {"1": True, "0": False}
AFFINE_TOLERANCE = 1e-3
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg")


@dataclass(frozen=True)
class ReferenceCase:
    """One image with its reference mask.

    Attributes:
        image_id: volume or image id.
        patient_id: the unit that intervals resample.
        image: path of the image.
        reference: path of the mask.
        tags: whether each slice holds the class, in the file's order along its last axis.
    """

    image_id: str
    patient_id: str
    image: Path
    reference: Path
    tags: tuple[bool, ...]


def find_reference_cases(dataset: Path, split: str, column: str = "has_lesion", modality: str = "") -> list[ReferenceCase]:
    """Lists the cases of one split of a dataset folder.

    The folder holds `images/`, `masks/` and a table: `slices.csv` (`patient_id`, perhaps `volume`, `slice_index`, `split`, tag columns;
    files `<volume>_<modality>.nii.gz` and `<volume>_seg.nii.gz`) or `images.csv` (`image_id`, `group_id`, `split`, tag columns; files
    `<image_id>.png`; rows with `label_conflict` 1 are left out).

    Args:
        dataset: the folder.
        split: value of the column `split`. Never `train`: training images have tags only, and no setting is chosen on their masks.
        column: the 0/1 tag column of the class.
        modality: part of the image's name after its id, such as `flair`; may be empty where an id has one image.

    Raises:
        FileNotFoundError: there is no table, no image or no mask.
        ValueError: the split is `train` or has no row, or a column is missing or malformed.
    """
    if split == "train":
        raise ValueError("split = 'train': must be a split for evaluation; training images carry tags only")
    by_slice = (dataset / "slices.csv").exists()
    with (dataset / ("slices.csv" if by_slice else "images.csv")).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"split", column, "slice_index" if by_slice else "image_id"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{file.name}: no column(s) {sorted(missing)}; it has {reader.fieldnames}")
        rows = [row for row in reader if row["split"] == split and row.get("label_conflict") != "1"]
    if not rows:
        raise ValueError(f"{dataset.name}: no row of split {split!r}")
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row.get("volume") or row.get("image_id") or row["patient_id"], []).append(row)
    return [_case(dataset, name, group, column, modality) for name, group in groups.items()]


def read_reference(case: ReferenceCase, volume: Volume, values: Sequence[int] = ()) -> np.ndarray:
    """Reads the reference mask of a case.

    Args:
        case: the case.
        volume: its image, on whose grid the mask must lie.
        values: mask values that count; any above 0 where empty.

    Returns:
        `(X, Y, Z)` booleans.

    Raises:
        VolumeError: the mask is unreadable or lies on another grid.
    """
    mask = read_volume(case.reference)
    if mask.array.shape != volume.array.shape or not np.allclose(mask.affine, volume.affine, atol=AFFINE_TOLERANCE):
        raise VolumeError(
            f"{case.reference.name}: mask of shape {mask.array.shape} does not lie on the grid of its image {volume.array.shape}"
        )
    return np.isin(mask.array, list(values)) if values else mask.array > 0


def _case(dataset: Path, name: str, rows: list[dict[str, str]], column: str, modality: str) -> ReferenceCase:
    rows = sorted(rows, key=lambda row: int(row.get("slice_index") or 0))
    if [int(row.get("slice_index") or 0) for row in rows] != list(range(len(rows))):
        raise ValueError(f"{name}: slice_index must count 0, 1, 2, ... without gaps")
    unknown = sorted({row[column] for row in rows} - set(TAGS))
    if unknown:
        raise ValueError(f"{name}, column {column!r}: {unknown} is neither 0 nor 1")
    patient = rows[0].get("patient_id") or rows[0].get("group_id") or name
    image = _one_file(dataset / "images", name, modality)
    return ReferenceCase(name, patient, image, _one_file(dataset / "masks", name, ""), tuple(TAGS[row[column]] for row in rows))


def _one_file(folder: Path, name: str, modality: str) -> Path:
    """The one file of an id: `<id><suffix>` or `<id>_<modality><suffix>`."""
    stems = {
        path: path.name.removesuffix(suffix)
        for path in sorted(folder.glob(f"{name}*"))
        for suffix in SUFFIXES
        if path.name.endswith(suffix)
    }
    found = [path for path, stem in stems.items() if stem in (name, f"{name}_{modality}") or (not modality and stem.startswith(f"{name}_"))]
    if not found:
        raise FileNotFoundError(f"{folder}: no file {name}{'_' + modality if modality else ''} with a suffix of {SUFFIXES}")
    if len(found) > 1:
        raise ValueError(f"{name}: several files {[path.name for path in found]}: name the modality")
    return found[0]
