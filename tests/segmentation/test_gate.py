"""The slice gate: scores of a classifier, smoothed in mm, and runs of positive slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from app_cdm.config import MaskSettings
from app_cdm.segmentation.gate import decide, is_likeliest, joint_logits, map_logits, positive_slices, slice_logits, slice_scores
from tests.saliency.counting import batch_sizes
from tests.tiny_networks import tiny_inputs, tiny_saliency_model


def gate(text: str, **changes: object) -> str:
    """Slices above (+) and below (.) the threshold in, kept ones out."""
    scores = np.array([0.9 if letter == "+" else 0.1 for letter in text])
    return "".join("+" if kept else "." for kept in positive_slices(scores, MaskSettings().replace(**changes)))


def test_logits_are_the_classifiers_of_clean_slices_in_any_batch() -> None:
    model, slices = tiny_saliency_model(), tiny_inputs(5).slices
    with batch_sizes(model.classifier) as sizes:
        found = slice_logits(model.classifier, slices, batch_images=2)
    torch.testing.assert_close(found, model.classifier(slices, torch.zeros(5, dtype=torch.long)), atol=1e-5, rtol=1e-5)
    assert sizes == [2, 2, 1]


def test_brightest_hundredth_of_a_map_speaks_for_its_slice() -> None:
    maps = np.full((3, 20, 20), 0.001, dtype=np.float32)
    maps[1, 3, 4:8] = 0.9
    maps[2] = 1.0
    assert map_logits(maps) == pytest.approx([np.log(0.001 / 0.999), np.log(9), 12.0], rel=1e-4)
    assert map_logits(np.zeros((1, 4, 4), dtype=np.float32)).tolist() == [-12.0]


def test_classifier_is_asked_where_maps_are_unsure_or_change_within_reach() -> None:
    of_maps = np.full((16, 2), -8.0)
    of_maps[9:, 1] = 8.0  # absent, then present: sure, but not around the change
    of_maps[3, 0] = -1.0
    asked: list[int] = []

    def classify(indices: np.ndarray) -> np.ndarray:
        asked.extend(indices.tolist())
        return np.stack([np.full(len(indices), -20.0), indices.astype(float)], axis=1)

    joint = joint_logits(of_maps, classify, slice_spacing_mm=4.0)
    assert asked == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    expected = of_maps.copy()
    expected[asked] = (of_maps[asked] + np.stack([np.full(9, -12.0), asked], axis=1)) / 2
    assert np.array_equal(joint, expected)


def test_classifier_is_not_asked_where_no_map_sees_anything() -> None:
    def classify(_indices: np.ndarray) -> np.ndarray:
        raise AssertionError("nobody sees anything")

    of_maps = np.full((4, 1), -5.0)
    assert np.array_equal(joint_logits(of_maps, classify, 5.0), of_maps)


def test_maps_of_exclusive_classes_can_only_be_sure_that_there_is_none() -> None:
    of_maps = np.array([[9.0, 8.0], [9.0, 8.0], [-9.0, -9.0], [-9.0, -9.0]])
    asked: list[int] = []

    def classify(indices: np.ndarray) -> np.ndarray:
        asked.extend(indices.tolist())
        return np.tile([-3.0, 4.0], (len(indices), 1))

    assert joint_logits(of_maps, classify, 100.0)[[0, 3]].tolist() == of_maps[[0, 3]].tolist()
    assert asked == [1, 2]  # the change
    asked.clear()
    joint = joint_logits(of_maps, classify, 100.0, exclusive_classes=True)
    assert asked == [0, 1, 2]
    assert joint[[0, 3]].tolist() == [[3.0, 6.0], [-9.0, -9.0]]


def test_scores_without_smoothing_are_probabilities() -> None:
    logits = np.array([-1e4, -2.0, 0.0, 3.0, 1e4], dtype=np.float32)
    scores = slice_scores(logits, 5.0, 0.0)
    np.testing.assert_allclose(scores[1:4], 1 / (1 + np.exp([2.0, 0.0, -3.0])), rtol=1e-6)
    assert 0 < scores[0] < 1e-4
    assert 1 - 1e-4 < scores[4] < 1


def test_smoothing_is_in_mm() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 40)
    expected = 1 / (1 + np.exp(-ndimage.gaussian_filter1d(logits, 2.0, mode="nearest")))
    np.testing.assert_allclose(slice_scores(logits, 3.0, 6.0), expected)
    np.testing.assert_allclose(slice_scores(logits, 1.5, 3.0), expected)


def test_smoothing_closes_a_gap_and_removes_an_outlier_but_no_single_slice() -> None:
    logits = np.array([-3.0] * 5 + [4, 4, 4, -1, 4, 4, 4] + [-3.0] * 6 + [1.0] + [-3.0] * 5)
    rough, smooth = slice_scores(logits, 4.0, 0.0) >= 0.5, slice_scores(logits, 4.0, 4.0) >= 0.5
    assert not rough[8]
    assert rough[18]
    assert smooth[8]
    assert not smooth[18]
    assert slice_scores(np.array([2.0]), 5.0, 4.0)[0] == pytest.approx(1 / (1 + np.exp(-2.0)))


@pytest.mark.parametrize(
    ("text", "consistency", "expected"),
    [
        ("..+++..+..", 2, "..+++....."),
        ("..+++..+..", 1, "..+++..+.."),
        ("..++...+++", 3, ".......+++"),
        ("+..++..+", 2, "...++..."),
        ("..+...+...", 2, "..+...+..."),  # nothing longer: single slices stay
        ("..++..+...", 5, "..++..+..."),
        ("..........", 2, ".........."),
        ("++++++++++", 9, "++++++++++"),
        ("+", 3, "+"),
    ],
)
def test_short_runs_go_unless_there_is_nothing_else(text: str, consistency: int, expected: str) -> None:
    assert gate(text, slice_consistency=consistency) == expected


def test_threshold_is_inclusive_and_gate_off_takes_every_slice() -> None:
    scores = np.array([0.2, 0.3, 0.31, 0.9])
    assert positive_slices(scores, MaskSettings(gate_threshold=0.3, slice_consistency=1)).tolist() == [False, True, True, True]
    assert positive_slices(scores, MaskSettings(gate="off", gate_threshold=1.0)).tolist() == [True] * 4
    assert positive_slices(scores, MaskSettings(gate_threshold=0.0)).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 5), st.floats(0, 1))
def test_gate_only_removes_and_never_everything(scores: list[float], consistency: int, threshold: float) -> None:
    given_scores = np.array(scores)
    kept = positive_slices(given_scores, MaskSettings(gate_threshold=threshold, slice_consistency=consistency))
    above = given_scores >= threshold
    assert kept.dtype == bool
    assert not (kept & ~above).any()
    assert kept.any() == above.any()


def test_of_exclusive_classes_the_likeliest_is_decided_for() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.6, 0.7, 0.1], [0.2, 0.1, 0.3]])
    assert is_likeliest(scores, False).all()
    assert is_likeliest(scores, True).tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    settings = MaskSettings(gate_threshold=0.5, slice_consistency=1)
    assert decide(scores, settings, False).tolist() == [[True, True, False], [True, True, False], [False, False, False]]
    assert decide(scores, settings, True).tolist() == [[True, False, False], [False, True, False], [False, False, False]]
    assert decide(scores, MaskSettings(gate="off"), True).all()
    lone = np.array([[0.9, 0.6], [0.6, 0.9], [0.6, 0.9], [0.9, 0.6], [0.9, 0.6], [0.6, 0.9]])
    assert decide(lone, MaskSettings(slice_consistency=2), True).T.astype(int).tolist() == [[0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0]]
    by_class = [positive_slices(of_class, settings).tolist() for of_class in scores.T]
    assert decide(scores, settings, False).T.tolist() == by_class
