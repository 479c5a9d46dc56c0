"""Candidates of every mode's free number: as many for each, valid, and judged by one figure."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import torch
from scipy import ndimage

from app_cdm.config import SaliencyMode, SaliencySettings
from app_cdm.saliency.candidates import CANDIDATES, candidate_peaks
from app_cdm.saliency.combine import METHODS
from app_cdm.saliency.parallel import parallel_saliency
from tests.saliency.counting import batch_sizes
from tests.tiny_networks import tiny_inputs, tiny_saliency_model

FAST = SaliencySettings(num_draws=1, flip=False, num_denoising_steps=2, cg_diff_num_steps=3)


def test_every_mode_has_three_candidates_or_a_reason_to_have_none() -> None:
    assert set(METHODS) == set(typing.get_args(SaliencyMode))
    assert set(METHODS) - set(CANDIDATES) == {"derivative", "grad_cam", "layer_cam", "intensity"}
    for candidates in CANDIDATES.values():
        assert len(set(candidates.values)) == len(set(candidates.names)) == 3
        for value in candidates.values:
            assert getattr(SaliencySettings().replace(**{candidates.field: value}), candidates.field) == value
    fields = [candidates.field for candidates in CANDIDATES.values()]
    assert len(set(fields)) == len(fields)  # choosing for one mode never changes another


def test_names() -> None:
    assert CANDIDATES["cg_cdm"].names == ["1", "10", "100"]
    assert CANDIDATES["parallel"].names[1] == "0.35, 0.5, 0.65"


@pytest.mark.parametrize("mode", sorted(set(CANDIDATES) - {"parallel"}))
def test_peak_is_in_standard_deviations_of_the_map_inside_the_body(mode: Any) -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(2)
    model.classifier.conv_out.weight.mul_(20)
    found = candidate_peaks(model, inputs, mode, FAST)
    assert found.shape == (3, 2)
    for peaks, value in zip(found, CANDIDATES[mode].values, strict=True):
        with torch.no_grad():
            maps = METHODS[mode](model, inputs, FAST.replace(**{CANDIDATES[mode].field: value}))
        for peak, saliency, image in zip(peaks, maps, inputs.slices, strict=True):
            smoothed = ndimage.gaussian_filter(saliency.numpy() / saliency.numpy().std(ddof=1), 1.0)
            assert float(peak) == pytest.approx(max(0.0, smoothed[image[0].numpy() > -0.95].max()), rel=1e-2)
    assert not torch.equal(found[0], found[1])


def test_parallel_runs_each_level_once_and_averages_the_levels_of_a_candidate() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(2)
    with batch_sizes(model.unet) as sizes:
        found = candidate_peaks(model, inputs, "parallel", FAST)
    assert sum(sizes) == 2 * 2 * 4
    with torch.no_grad():
        first, second, third = (parallel_saliency(model, inputs, FAST.replace(noise_levels=(level,))) for level in (0.35, 0.5, 0.65))
    for index in range(2):
        smoothed = ndimage.gaussian_filter(((first + second + third)[index] / 3).numpy(), 1.0)
        assert float(found[1, index]) == pytest.approx(smoothed[2:14, 2:14][inputs.slices[index, 0, 2:14, 2:14] > -0.95].max(), rel=1e-4)
