from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from demo.cases import Case, CaseSpec
from demo.client import Answer, Grid
from demo.report import MAX_FALSE_ML, MIN_CASE_DICE, MIN_MEAN_DICE, Score, align, failures, score
from demo.warp import Geometry

AFFINE = np.array([[-1.5, 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 6, -10], [0, 0, 0, 1]], dtype=np.float32)


@pytest.fixture
def case() -> Case:
    mask = np.zeros((10, 12, 5), dtype=np.uint8)
    mask[2:6, 3:7, 1:3] = 1
    return Case(CaseSpec("c", seed=0, radius_mm=10.0), mask.astype(np.int16), mask, Geometry(mask.shape, AFFINE))


def answer(values: np.ndarray, affine: np.ndarray = AFFINE) -> Answer:
    grid = Grid(values, affine.astype(np.float64))
    return Answer(mask=grid, saliency=grid, params={}, wall_s=1.0)


def test_perfect_mask(case: Case) -> None:
    result = score(case, answer(case.mask))
    assert result.dice == 1.0
    assert result.is_geometry_right
    assert result.true_ml == pytest.approx(32 * 1.5 * 1.5 * 6 / 1000)


def test_mirrored_storage_is_the_same_mask(case: Case) -> None:
    flipped = AFFINE @ np.array([[-1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert score(case, answer(case.mask[::-1], flipped)).dice == 1.0


def test_mirrored_values_are_not(case: Case) -> None:
    assert score(case, answer(case.mask[::-1])).dice < 1.0


@pytest.mark.parametrize("change", ["shift", "shape", "type"])
def test_wrong_geometry_is_seen(case: Case, change: str) -> None:
    values, affine = case.mask, AFFINE.copy()
    if change == "shift":
        affine[2, 3] += 6
    elif change == "shape":
        values = values[:, :, :-1]
    else:
        values = values.astype(np.int16)
    assert not score(case, answer(values, affine)).is_geometry_right


def test_align_returns_the_reference_grid(case: Case) -> None:
    swapped = Grid(case.mask.transpose(1, 0, 2), AFFINE[:, [1, 0, 2, 3]].astype(np.float64))
    aligned = align(swapped, Grid(case.mask, AFFINE.astype(np.float64)))
    assert aligned is not None
    assert np.array_equal(aligned.values, case.mask)


def test_failures_name_what_is_wrong() -> None:
    good = Score("good", dice=0.9, mask_ml=10.0, true_ml=10.0, is_geometry_right=True, wall_s=1.0)
    free = Score("free", dice=math.nan, mask_ml=0.0, true_ml=0.0, is_geometry_right=True, wall_s=1.0)
    assert failures([good, free]) == []
    assert failures([good, dataclasses.replace(free, mask_ml=MAX_FALSE_ML + 1)])
    assert failures([good, dataclasses.replace(good, dice=MIN_CASE_DICE - 0.01)])
    assert failures([dataclasses.replace(good, dice=MIN_MEAN_DICE - 0.01), free])
    assert failures([dataclasses.replace(good, is_geometry_right=False)])
