"""Where maps come from: each method's source, the student's one pass for all classes, and how unsure a slice is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app_cdm.cldf.decode import decoder_maps
from app_cdm.cldf.features import FeatureSettings
from app_cdm.config import Method, PreprocessSettings, SaliencyMode, SaliencySettings, SegmentationSettings
from app_cdm.data.slices import SliceStack, cut_slices
from app_cdm.data.volume import Volume
from app_cdm.networks.student import StudentNetwork
from app_cdm.saliency.base import SaliencyInputs
from app_cdm.saliency.batches import BatchLimit
from app_cdm.saliency.combine import saliency_maps
from app_cdm.segmentation.maps import DecoderMaps, StudentMaps, map_source, slice_uncertainty
from tests.saliency.counting import batch_sizes, out_of_memory_above
from tests.tagged_slices import FEATURES, tiny_decoder
from tests.tiny_networks import tiny_saliency_model
from tests.training.synthetic import blob_volume

FAST = SegmentationSettings(saliency=SaliencySettings(noise_levels=(0.5,), num_draws=1, flip=False))


def tiny_student() -> StudentNetwork:
    torch.manual_seed(0)
    return StudentNetwork(2, 1, (8, 16), 1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def stack() -> SliceStack:
    array, _ = blob_volume(np.random.default_rng(0), 7, range(2, 5))
    return cut_slices(Volume(array, np.diag([-1.0, 1.0, 5.0, 1.0])), PreprocessSettings(image_size=16))


def student_oracle(student: StudentNetwork, stack: SliceStack, class_index: int, index: int) -> np.ndarray:
    near = [min(max(index + offset, 0), len(stack.slices) - 1) for offset in (-1, 0, 1)]
    sample = torch.stack([stack.slices[i, 0] for i in near])[None]
    return 1 / (1 + np.exp(-student(sample)[0, class_index].numpy()))


def test_student_sees_each_slice_once_for_all_classes_with_its_neighbours(stack: SliceStack) -> None:
    student = tiny_student()
    source = StudentMaps(student, stack, BatchLimit(4))
    with batch_sizes(student) as sizes:
        for class_index, part in ((0, [0, 1, 2]), (0, [3, 6]), (1, [1, 2, 3]), (1, [6, 5, 0]), (0, [5])):
            found = source(class_index, np.array(part))
            expected = np.stack([student_oracle(student, stack, class_index, index) for index in part])
            np.testing.assert_allclose(found, expected, atol=1e-5)
    # The oracle runs the network on single slices; the source runs it on three, two and one that it had not seen.
    assert [size for size in sizes if size > 1] == [3, 2]
    assert len(sizes) - 2 == 1 + (3 + 2 + 3 + 3 + 1)


def test_classes_of_the_student_differ(stack: SliceStack) -> None:
    source = StudentMaps(tiny_student(), stack, BatchLimit())
    assert np.abs(source(0, np.arange(7)) - source(1, np.arange(7))).max() > 0.01


@pytest.mark.parametrize(("batch_images", "calls"), [(64, [14, 4]), (8, [8, 6, 4]), (5, [4, 4, 4, 2, 4]), (2, [2] * 9), (1, [2] * 9)])
def test_decoder_has_one_call_for_all_classes_within_the_batch(stack: SliceStack, batch_images: int, calls: list[int]) -> None:
    model, decoder = tiny_saliency_model(), tiny_decoder()
    first, second = np.arange(7), np.array([1, 3])
    other = replace(stack, slices=stack.slices.flip(-1))
    with batch_sizes(model.unet.conv_in) as sizes:
        source = DecoderMaps(model, decoder, stack, BatchLimit(batch_images))
        found = [source(0, first), source(1, second), source(1, first), source(0, second)]
        DecoderMaps(model, decoder, other, BatchLimit(batch_images))(1, second)  # another volume has features of its own
    assert sizes == calls
    assert model.counter.images == FEATURES.num_evaluations * (7 + 2) == 18
    for maps, part, class_index in zip(found, (first, second, first, second), (0, 1, 1, 0), strict=True):
        inputs = SaliencyInputs(stack.slices[part], stack.positions[part], tuple(part.tolist()), class_index)
        np.testing.assert_allclose(maps, decoder_maps(model, decoder, inputs).numpy(), atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 0.01


def test_contrast_features_are_made_for_each_class(stack: SliceStack) -> None:
    model, decoder, part = tiny_saliency_model(), tiny_decoder(FeatureSettings((0.2,), (0.4,), (0, 1))), np.arange(7)
    source = map_source(model, decoder, None, stack, FAST.replace(method="cldf"), BatchLimit(7))
    with batch_sizes(model.unet.conv_in) as sizes:
        found = [source(class_index, part) for class_index in (0, 1)]
    assert sizes == [6, 6, 6, 3] * 2
    for class_index, maps in enumerate(found):
        inputs = SaliencyInputs(stack.slices, stack.positions, tuple(range(7)), class_index)
        np.testing.assert_allclose(maps, decoder_maps(model, decoder, inputs).numpy(), atol=1e-5)


def test_source_of_each_method(stack: SliceStack) -> None:
    model, decoder, student = tiny_saliency_model(), tiny_decoder(), tiny_student()
    part = np.array([4, 2])
    inputs = SaliencyInputs(stack.slices[part], stack.positions[part], (4, 2), 1)
    expected = {
        "cdm_saliency": saliency_maps(model, inputs, FAST.saliency).numpy(),
        "cldf": decoder_maps(model, decoder, inputs).numpy(),
        "student": np.stack([student_oracle(student, stack, 1, index) for index in part]),
    }
    for method, maps in expected.items():
        batch = BatchLimit()
        found = map_source(model, decoder, StudentMaps(student, stack, batch), stack, FAST.replace(method=method), batch)(1, part)
        assert found.shape == (2, 16, 16)
        np.testing.assert_allclose(found, maps, atol=1e-5)


@pytest.mark.parametrize("method", ["cldf", "student"])
def test_method_without_its_network_says_what_to_do(stack: SliceStack, method: str) -> None:
    decoder, student = (None, tiny_student()) if method == "cldf" else (tiny_decoder(), None)
    with pytest.raises(ValueError, match=f"method = '{method}': this model has not been trained for it; train the stages it lacks"):
        map_source(tiny_saliency_model(), decoder, student, stack, FAST.replace(method=method), BatchLimit())


@pytest.mark.parametrize(
    ("method", "mode", "a_slice"),
    [("cldf", "parallel", 2), ("student", "parallel", 1), ("cdm_saliency", "parallel", 2), ("cdm_saliency", "cg_diff", 1),
     ("cdm_saliency", "gradient", 1), ("cdm_saliency", "layer_cam", 1), ("cdm_saliency", "grad_cam", 1)],
)  # fmt: skip
def test_memory_for_one_slice_suffices_and_for_less_is_an_error(
    stack: SliceStack, method: Method, mode: SaliencyMode, a_slice: int
) -> None:
    model, student, part = tiny_saliency_model(), tiny_student(), np.arange(7)
    model.classifier.conv_out.weight.mul_(20)
    settings = SegmentationSettings(method, FAST.saliency.replace(mode=mode, cg_diff_num_steps=2))

    def find() -> np.ndarray:
        batch = BatchLimit()
        return map_source(model, tiny_decoder(), StudentMaps(student, stack, batch), stack, settings, batch)(1, part)

    expected = find()
    network = {"cldf": model.unet.conv_in, "student": student, "cdm_saliency": model.unet.conv_in}[method]
    network = model.classifier.conv_in if mode in ("gradient", "layer_cam", "grad_cam") else network
    with out_of_memory_above(network, a_slice) as refused:
        np.testing.assert_allclose(find(), expected, atol=1e-4)
    assert max(refused) > a_slice
    with out_of_memory_above(network, a_slice - 1), pytest.raises(torch.OutOfMemoryError):
        find()


@given(st.integers(0, 999), st.floats(0, 1), st.floats(0, 1))
def test_uncertainty_is_a_share(seed: int, low: float, high: float) -> None:
    maps = np.clip(np.random.default_rng(seed).uniform(low, max(low, high), (4, 5, 5)), 0, 1)
    found = slice_uncertainty(maps)
    assert found.shape == (4,)
    for value, probabilities in zip(found, maps, strict=True):
        expected = sum(min(p, 1 - p) for p in probabilities.flat) / max(probabilities.sum(), 1.0)
        assert value == pytest.approx(min(expected, 1.0))
        assert 0 <= value <= 1


def test_uncertainty_of_certain_and_undecided_slices() -> None:
    maps = np.zeros((4, 4, 4))
    maps[1, :2], maps[2], maps[3, 0, 0] = 1.0, 0.5, 0.3
    assert slice_uncertainty(maps).tolist() == pytest.approx([0.0, 0.0, 1.0, 0.3])
