"""Conditions of the diffusion model: what is said of the class in question, and of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app_cdm.networks.condition import ABSENT_INDEX, NULL_INDEX, PRESENT_INDEX
from app_cdm.saliency.base import class_weights
from tests.tiny_networks import tiny_inputs, tiny_saliency_model


@pytest.mark.parametrize(("exclusive", "others"), [(False, NULL_INDEX), (True, ABSENT_INDEX)])
def test_other_classes_are_null_and_absent_where_classes_exclude_each_other(exclusive: bool, others: int) -> None:
    model, inputs = replace(tiny_saliency_model(num_classes=3), exclusive_classes=exclusive), tiny_inputs(2, class_index=1)
    weights = class_weights(model, inputs, 0.75)
    assert weights.shape == (2, 3, 3)
    assert weights[:, 1, [ABSENT_INDEX, PRESENT_INDEX, NULL_INDEX]].tolist() == [[0.25, 0.75, 0.0]] * 2
    assert (weights[:, [0, 2], others] == 1).all()
    assert (weights.sum(dim=2) == 1).all()


@pytest.mark.parametrize("exclusive", [False, True])
def test_null_condition_says_nothing_of_any_class(exclusive: bool) -> None:
    model = replace(tiny_saliency_model(num_classes=3), exclusive_classes=exclusive)
    assert (class_weights(model, tiny_inputs(2), None)[:, :, NULL_INDEX] == 1).all()
