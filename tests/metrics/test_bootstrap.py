"""The bootstrap against its closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from app_cdm.metrics.bootstrap import bootstrap_auc, bootstrap_mean
from app_cdm.metrics.ranking import tag_auc

NAN = float("nan")


def test_interval_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    mean, low, high = bootstrap_mean({str(index): [value] for index, value in enumerate(values)}, num_resamples=4000)
    assert mean == pytest.approx(values.mean())
    half_width = norm.ppf(0.975) * values.std() / np.sqrt(len(values))
    assert (mean - low, high - mean) == pytest.approx((half_width, half_width), rel=0.1)


def test_patients_not_slices_are_resampled() -> None:
    twins = {str(patient): [float(patient % 2)] * 50 for patient in range(10)}
    singles = {str(patient): [float(patient % 2)] for patient in range(10)}
    assert bootstrap_mean(twins) == pytest.approx(bootstrap_mean(singles))
    assert bootstrap_mean(twins, weighting="value") == pytest.approx(bootstrap_mean(singles, weighting="value"))


def test_weighting_decides_what_a_slice_counts() -> None:
    values = {"a": [1.0, 1.0, 1.0], "b": [0.0]}
    assert bootstrap_mean(values)[0] == 0.5
    assert bootstrap_mean(values, weighting="value")[0] == 0.75
    assert bootstrap_mean(values, weighting="value")[1:] == (0.0, 1.0)


def test_nan_is_left_out_and_order_does_not_matter() -> None:
    assert bootstrap_mean({"a": [1.0, NAN], "b": [NAN], "c": [0.0]})[0] == 0.5
    assert all(np.isnan(bootstrap_mean({"a": [NAN], "b": []})))
    assert all(np.isnan(bootstrap_mean({})))
    values = {"a": [0.1], "b": [0.4, 0.5], "c": [0.9]}
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(dict(reversed(values.items())), seed=3)
    assert bootstrap_mean({"a": [0.4]}) == pytest.approx((0.4, 0.4, 0.4))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_resamples"):
        bootstrap_mean({"a": [1.0]}, num_resamples=0)
    with pytest.raises(ValueError, match="weighting"):
        bootstrap_mean({"a": [1.0]}, weighting="slice")  # type: ignore[arg-type]


def test_auc_of_resamples_is_that_of_repeated_patients() -> None:
    rng = np.random.default_rng(2)
    rows = {str(patient): [(float(rng.integers(5)), bool(rng.integers(2))) for _ in range(4)] for patient in range(6)}
    area, low, high = bootstrap_auc(rows, num_resamples=300)
    assert area == pytest.approx(tag_auc(*zip(*[row for group in rows.values() for row in group], strict=True)))  # type: ignore[arg-type]
    drawn = np.random.default_rng(0).integers(0, 6, (300, 6))
    areas = [tag_auc(*zip(*[row for patient in draw for row in rows[str(patient)]], strict=True)) for draw in drawn]  # type: ignore[arg-type]
    assert (low, high) == pytest.approx(tuple(np.percentile(areas, (2.5, 97.5))))
    assert all(np.isnan(bootstrap_auc({"a": [(0.1, True)]})))
