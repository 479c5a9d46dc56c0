"""Pseudo-masks: the truth table of tags and probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN
from app_cdm.student.pseudo import pseudo_masks


@pytest.mark.parametrize(
    ("state", "targets", "weights"),
    [
        (PRESENT, [1, 1, 0, 0, 0], [1, 0, 0, 1, 1]),
        (ABSENT, [0, 0, 0, 0, 0], [0.3, 0.3, 0.3, 0.3, 0.3]),
        (UNKNOWN, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ],
)
def test_truth_table(state: int, targets: list[float], weights: list[float]) -> None:
    probabilities = torch.tensor([0.9, 0.5625, 0.4375, 0.375, 0.0]).view(1, 1, 1, 5)
    masks = pseudo_masks(probabilities, torch.tensor([[state]], dtype=torch.int8), 0.125, 0.3)
    torch.testing.assert_close(masks.targets.flatten(), torch.tensor(targets, dtype=torch.float))
    torch.testing.assert_close(masks.weights.flatten(), torch.tensor(weights, dtype=torch.float))


@pytest.mark.parametrize(("highest", "counts"), [(0.5, True), (0.499, False), (0.0, False)])
def test_slice_that_contradicts_its_tag_does_not_count(highest: float, counts: bool) -> None:
    probabilities = torch.zeros(2, 1, 3, 3)
    probabilities[0, 0, 1, 1], probabilities[1, 0, 0, 0] = highest, 0.9
    masks = pseudo_masks(probabilities, torch.full((2, 1), PRESENT, dtype=torch.int8), 0.0)
    assert bool(masks.weights[0].all()) == bool(masks.weights[0].any()) == counts
    assert bool(masks.targets[0].any()) == counts
    assert masks.weights[1].all(), "the slices beside it do"


def test_classes_of_a_slice_are_apart() -> None:
    probabilities = torch.full((1, 3, 2, 2), 0.8)
    masks = pseudo_masks(probabilities, torch.tensor([[PRESENT, ABSENT, UNKNOWN]], dtype=torch.int8), 0.1, 0.5)
    assert masks.targets[0].mean(dim=(1, 2)).tolist() == [1, 0, 0]
    assert masks.weights[0].mean(dim=(1, 2)).tolist() == [1, 0.5, 0]


@examples(max_examples=20)
@given(st.integers(0, 999), st.floats(0, 0.5), st.floats(0, 1))
def test_any_input(seed: int, ignored_band: float, negative_weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(4, 2, 3, 3, generator=generator) * torch.rand(4, 2, 1, 1, generator=generator)
    states = torch.randint(-1, 2, (4, 2), generator=generator).to(torch.int8)
    before = probabilities.clone()
    masks = pseudo_masks(probabilities, states, ignored_band, negative_weight)
    assert torch.equal(probabilities, before)
    for n, c, row, column in torch.cartesian_prod(*(torch.arange(size) for size in probabilities.shape)).tolist():
        state, p = int(states[n, c]), float(probabilities[n, c, row, column])
        is_found = float(probabilities[n, c].max()) >= 0.5
        is_sure = bool((probabilities[n, c, row, column] - 0.5).abs() >= ignored_band)
        weight = {PRESENT: float(is_found and is_sure), ABSENT: negative_weight, UNKNOWN: 0.0}[state]
        assert float(masks.targets[n, c, row, column]) == float(state == PRESENT and p >= 0.5)
        assert float(masks.weights[n, c, row, column]) == pytest.approx(weight)
