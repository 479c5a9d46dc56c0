"""Volumes of one DICOM series: several echoes, times or b-values are told apart by one attribute, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app_cdm.data.dicom_header import SliceHeader
from app_cdm.data.dicom_stack import count_positions, ordered, stack_affine
from app_cdm.data.grid import VolumeError

MAX_VOLUMES = 8
MIN_SLICES = 2
SAME_PLACE_MM = 0.01

Part = tuple[str, str]


def split_volumes(headers: Sequence[SliceHeader]) -> dict[Part, list[SliceHeader]]:
    """Splits a series of which several slices lie at one position into its volumes.

    The attribute that tells volumes apart must do so alone and completely: two to eight values, the slices of each value a regular
    stack of at least two slices, every stack on the same grid.

    Args:
        headers: all slices of one series.

    Returns:
        Name and value of the attribute -> slices in order; empty where the series is one volume, or where no attribute tells its
        volumes apart.
    """
    slices = ordered(headers)
    if count_positions(slices) in (0, len(slices)):
        return {}
    for name, _ in slices[0].marks:
        parts: dict[Part, list[SliceHeader]] = {}
        for header in slices:
            value = dict(header.marks).get(name)
            if value is not None:
                parts.setdefault((name, value), []).append(header)
        if 2 <= len(parts) <= MAX_VOLUMES and sum(map(len, parts.values())) == len(slices) and _share_a_grid(list(parts.values())):
            return dict(sorted(parts.items(), key=lambda part: _natural(part[0][1])))
    return {}


def _share_a_grid(volumes: Sequence[list[SliceHeader]]) -> bool:
    if len({len(volume) for volume in volumes}) > 1 or len(volumes[0]) < MIN_SLICES:
        return False
    try:
        affines = [stack_affine(volume) for volume in volumes]
    except VolumeError:
        return False
    return all(np.allclose(affine, affines[0], atol=SAME_PLACE_MM) for affine in affines)


def _natural(value: str) -> tuple[float, str]:
    """Numbers by size, before words."""
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
