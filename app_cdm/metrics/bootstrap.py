"""Uncertainty of a mean over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Weighting = Literal["patient", "value"]
INTERVAL = (2.5, 97.5)


def bootstrap_mean(
    values_by_patient: Mapping[str, Sequence[float]], num_resamples: int = 2000, seed: int = 0, weighting: Weighting = "patient"
) -> tuple[float, float, float]:
    """Mean with a percentile bootstrap 95 % interval, resampling patients (Efron & Tibshirani 1993, chapter 13).

    Values of one patient are not independent, so whole patients are drawn with replacement. NaN values are left out, and so are patients
    that have no other.

    Args:
        values_by_patient: patient -> values, such as the Dice of each slice.
        num_resamples: number of resamples.
        seed: of the resampling; equal input and seed give equal output.
        weighting: `patient` averages the patients' means, `value` averages all values alike (a patient with more slices counts more).

    Returns:
        Mean, lower and upper bound; three NaN where there is no value.

    Raises:
        ValueError: `num_resamples` is not positive or `weighting` is unknown.

    Example:
        >>> bootstrap_mean({"a": [0.5, 0.7], "b": [0.6]})[0]
        0.6
    """
    if num_resamples < 1 or weighting not in ("patient", "value"):
        raise ValueError(f"num_resamples = {num_resamples}, weighting = {weighting!r}: must be positive, and 'patient' or 'value'")
    finite = [[value for value in values if not np.isnan(value)] for _, values in sorted(values_by_patient.items())]
    finite = [values for values in finite if values]
    if not finite:
        return (float("nan"),) * 3
    counts = np.array([len(values) if weighting == "value" else 1 for values in finite], dtype=np.float64)
    sums = np.array([np.sum(values) for values in finite]) * counts / [len(values) for values in finite]
    drawn = np.random.default_rng(seed).integers(0, len(finite), (num_resamples, len(finite)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), INTERVAL)
    return float(sums.sum() / counts.sum()), float(low), float(high)


def bootstrap_auc(
    scores_by_patient: Mapping[str, Sequence[tuple[float, bool]]], num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Area under the ROC curve of pooled scores with a percentile bootstrap 95 % interval, resampling patients.

    With `U[i, j]` the number of pairs of a tagged image of patient i and an untagged one of patient j that are ranked rightly (ties count
    half), the area of a resample that holds patient i `w_i` times is `sum_ij w_i w_j U[i, j] / (sum_i w_i P_i  sum_j w_j N_j)`.

    Args:
        scores_by_patient: patient -> (finite score, tag) of each image or slice.
        num_resamples: number of resamples; those with tags of one kind only are left out.
        seed: of the resampling.

    Returns:
        Area, lower and upper bound; three NaN where all tags are equal.

    Example:
        >>> bootstrap_auc({"a": [(0.9, True), (0.1, False)], "b": [(0.8, True), (0.2, False)]})
        (1.0, 1.0, 1.0)
    """
    patients = [scores_by_patient[name] for name in sorted(scores_by_patient)]
    present = [np.array([score for score, tag in rows if tag]) for rows in patients]
    absent = [np.sort([score for score, tag in rows if not tag]) for rows in patients]
    num_present, num_absent = (np.array([len(part) for part in parts], dtype=np.float64) for parts in (present, absent))
    if not num_present.sum() or not num_absent.sum():
        return (float("nan"),) * 3
    pairs = np.array([[_pairs_ranked_rightly(first, second) for second in absent] for first in present])
    drawn = np.random.default_rng(seed).integers(0, len(patients), (num_resamples, len(patients)))
    weights = np.stack([np.bincount(row, minlength=len(patients)) for row in drawn]).astype(np.float64)
    possible = (weights @ num_present) * (weights @ num_absent)
    areas = ((weights @ pairs) * weights).sum(axis=1)[possible > 0] / possible[possible > 0]
    low, high = np.percentile(areas, INTERVAL) if areas.size else (float("nan"),) * 2
    return float(pairs.sum() / (num_present.sum() * num_absent.sum())), float(low), float(high)


def _pairs_ranked_rightly(present: np.ndarray, absent_sorted: np.ndarray) -> float:
    below = np.searchsorted(absent_sorted, present, side="left").sum()
    return float(below + np.searchsorted(absent_sorted, present, side="right").sum()) / 2
