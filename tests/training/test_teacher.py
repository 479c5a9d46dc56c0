"""What the student learns from: each opinion against its formula, and every volume on its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu

from app_cdm.cldf.decode import decoder_maps
from app_cdm.cldf.votes import SLICES_PER_CALL, Votes, inputs_of, volume_saliency
from app_cdm.config import SaliencySettings
from app_cdm.networks.student import StudentNetwork, with_neighbours
from app_cdm.segmentation.mask import LEAST_PEAK, raise_peaks
from app_cdm.segmentation.refinement import follow_image
from app_cdm.training.teacher import decoder_probabilities, saliency_probabilities, student_probabilities, teach
from tests.tagged_slices import tiny_decoder, two_volumes
from tests.tiny_networks import tiny_saliency_model

SALIENCY = SaliencySettings(noise_levels=(0.4, 0.7), smoothing_px=0.5)
INDEX = torch.tensor([1, 2, 3, 5, 6])  # present: three slices of the first volume, two of the second


def votes(seed: int = 0) -> Votes:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.rand(5, 2, 16, 16, generator=generator)
    levels[:, :, 5:9, 6:10] += 4
    return Votes(INDEX, torch.zeros(5, 16, 16), torch.zeros(5, 16, 16), levels)


def opinions(seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    maps = ndimage.gaussian_filter(rng.random((3, 5, 16, 16)), (0, 0, 1, 1)) - 0.5
    maps[..., 5:9, 6:10] += 0.4  # where the image has its blob
    maps[..., 4:10, 5:11] += 0.3
    return [torch.from_numpy(m.clip(0, 1).astype(np.float32)) for m in maps]


def tiny_student() -> StudentNetwork:
    torch.manual_seed(0)
    return StudentNetwork(2, 1, (8, 16), 1).eval().requires_grad_(False)


@pytest.mark.parametrize("slice_smoothing", [0.0, 1.0])
def test_diffusion_map_is_one_half_at_the_otsu_threshold_of_its_volume(slice_smoothing: float) -> None:
    data, given = two_volumes(), votes()
    given.levels[3:] *= 3
    found = saliency_probabilities(data, given, SALIENCY, slice_smoothing)
    assert found.dtype == torch.float32
    for rows in (torch.tensor([0, 1, 2]), torch.tensor([3, 4])):
        slices = data.slices[INDEX[rows]]
        maps = volume_saliency(given.levels[rows], slices, SALIENCY, slice_smoothing)
        limit = threshold_otsu(maps[(slices[:, 0] > -0.95).numpy()])
        np.testing.assert_allclose(found[rows], np.minimum(maps / (2 * limit), 1), atol=1e-6)
        np.testing.assert_array_equal(found[rows] > 0.5, maps > limit)
        assert 0 < float((found[rows] > 0.5).float().mean()) < 0.3


def test_volume_without_any_difference_has_no_target_and_the_other_keeps_its_own() -> None:
    data, given = two_volumes(), votes()
    expected = saliency_probabilities(data, given, SALIENCY, 1.0)
    flat = dataclasses.replace(given, levels=given.levels * torch.tensor([1.0, 1, 1, 0, 0])[:, None, None, None])
    found = saliency_probabilities(data, flat, SALIENCY, 1.0)
    assert torch.equal(found[:3], expected[:3])
    assert not found[3:].any()


def test_decoder_is_asked_in_parts_and_answers_for_each_slice() -> None:
    model, decoder, data = tiny_saliency_model(), tiny_decoder(), two_volumes()
    index = torch.arange(9).repeat(2)  # more than one part
    assert len(index) > SLICES_PER_CALL
    found = decoder_probabilities(model, decoder, data, index, 1)
    assert found.shape == (18, 16, 16)
    for row in (0, 4, 8, 17):
        alone = decoder_maps(model, decoder, inputs_of(data, index[row : row + 1], 1))
        torch.testing.assert_close(found[row], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("class_index", [0, 1])
def test_student_is_the_mean_of_a_slice_and_its_mirror_image(class_index: int) -> None:
    student, data = tiny_student(), two_volumes()
    index = torch.arange(9).repeat(8)  # more than one part
    found = student_probabilities(student, data, index, class_index)
    assert found.shape == (72, 16, 16)
    for row in (0, 4, 5, 71):
        sample = with_neighbours(data.slices, index[row : row + 1], data.volume_index, 1)
        plain, mirrored = (torch.sigmoid(student(s))[0, class_index] for s in (sample, sample.flip(-1)))
        torch.testing.assert_close(found[row], (plain + mirrored.flip(-1)) / 2, atol=1e-5, rtol=1e-4)
        assert (plain - mirrored.flip(-1)).abs().max() > 1e-3, "an untrained network is not symmetric"
    reflected = dataclasses.replace(data, slices=data.slices.flip(-1))
    torch.testing.assert_close(student_probabilities(student, reflected, index, class_index), found.flip(-1), atol=1e-5, rtol=1e-4)


def test_teaching_is_the_refined_mean_of_every_volume_on_its_own() -> None:
    data, heard = two_volumes(), opinions()
    found = teach(data, INDEX, heard)
    raised = [torch.from_numpy(raise_peaks(opinion.numpy(), LEAST_PEAK)) for opinion in heard]
    mean = (raised[0] + raised[1] + raised[2]) / 3
    for rows in ([0, 1, 2], [3, 4]):
        expected = follow_image(mean[rows].numpy(), data.slices[INDEX[rows], 0].numpy(), INDEX[rows].numpy())
        np.testing.assert_allclose(found[rows], expected, atol=1e-6)
    assert (found - mean * (data.slices[INDEX, 0] > -0.95)).abs().max() > 0.3, "the boundary has moved"
    for opinion in heard:
        opinion[3:] = 0.0
    changed = teach(data, INDEX, heard)
    assert torch.equal(changed[:3], found[:3])
    assert not changed[3:].any()


def test_one_certain_opinion_that_the_image_confirms_is_taught() -> None:
    data = two_volumes()
    mask = torch.zeros(5, 16, 16)
    mask[:, 5:9, 6:10] = 1
    assert torch.equal(teach(data, INDEX, [mask]) > 0.5, mask > 0.5)


def test_an_opinion_that_is_unsure_of_the_whole_slice_is_heard_for_its_shape() -> None:
    """Else a student that is unsure would teach the next one to be less sure."""
    data = two_volumes()
    mask = torch.zeros(5, 16, 16)
    mask[:, 5:9, 6:10] = 1
    assert torch.equal(teach(data, INDEX, [mask, 0.2 * mask]) > 0.5, mask > 0.5)
