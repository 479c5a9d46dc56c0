"""Calibration by tags: every mode that is asked for is judged by one criterion, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from app_cdm.calibration import DEFAULT_MODES, calibrate, slice_f1
from app_cdm.config import PreprocessSettings, SaliencySettings, SegmentationSettings
from app_cdm.data.slices import cut_slices
from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN, TagTable, read_tags
from app_cdm.data.volume import read_volume
from app_cdm.pipeline import CDMPipeline, ModelDescription
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.candidates import CANDIDATES, candidate_peaks
from tests.networks.test_student import tiny_student
from tests.saliency.counting import batch_sizes
from tests.tiny_networks import TINY, tiny_saliency_model
from tests.training.synthetic import write_blob_study

FAST = SegmentationSettings(saliency=SaliencySettings(num_draws=1, flip=False, num_denoising_steps=2, cg_diff_num_steps=3))
Study = tuple[dict[str, Path], TagTable]


@pytest.fixture(scope="module")
def model() -> SaliencyModel:
    model = tiny_saliency_model(num_classes=1)
    model.classifier.conv_out.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def pipeline(model: SaliencyModel) -> CDMPipeline:
    description = ModelDescription(class_names=("blob",), patch_size=TINY.patch_size, preprocess=PreprocessSettings(image_size=16))
    return CDMPipeline(model.unet, model.condition_embedding, model.classifier, model.scheduler, description.to_dict())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    table = write_blob_study(folder, count=3)
    paths = {f"case_{number}": folder / "images" / f"case_{number}.nii.gz" for number in range(3)}
    return paths, read_tags(table, {"blob": "has_blob"}, None)


@pytest.mark.parametrize("mode", sorted(CANDIDATES))
def test_chooses_the_candidate_whose_peaks_tell_the_tags_apart_best(
    pipeline: CDMPipeline, model: SaliencyModel, study: Study, mode: Any
) -> None:
    paths, tags = study
    found = calibrate(pipeline, paths, tags, FAST, modes=(mode,))
    peaks, states = [], []
    for name, path in paths.items():
        stack = cut_slices(read_volume(path), PreprocessSettings(image_size=16))
        inputs = SaliencyInputs(stack.slices, stack.positions, tuple(range(len(stack.slices))), 0)
        peaks.append(candidate_peaks(model, inputs, mode, FAST.saliency).numpy())
        states.append(stack.geometry.to_file_order(tags.states(name, len(stack.slices)))[:, 0])
    is_present = np.concatenate(states) == 1
    # The area under the ROC curve is the share of pairs in the right order (Mann-Whitney).
    pairs = is_present.sum() * (~is_present).sum()
    areas = [float(stats.mannwhitneyu(row[is_present], row[~is_present]).statistic / pairs) for row in np.concatenate(peaks, axis=1)]
    candidates = CANDIDATES[mode]
    record = found.record[candidates.field]
    assert record["mode"] == mode
    assert list(record["peak_auc"]) == candidates.names
    assert list(record["peak_auc"].values()) == pytest.approx(areas, abs=1e-4)
    best = candidates.values[int(np.argmax(areas))]
    assert record["chosen"] == (list(best) if isinstance(best, tuple) else best)
    assert found.settings.saliency == FAST.saliency.replace(**{candidates.field: best})


def test_only_the_modes_asked_for_are_judged(pipeline: CDMPipeline, study: Study) -> None:
    assert DEFAULT_MODES == ("parallel", "reference")
    shares: list[float] = []
    with batch_sizes(pipeline.unet) as sizes:
        found = calibrate(pipeline, *study, FAST, progress=shares.append)
    # 24 slices: four levels of two conditions, and three candidates of 2 R evaluations.
    assert sum(sizes) == 24 * (4 * 2 + 3 * 2 * 2)
    assert {"noise_levels", "reference_noise_level"} == set(found.record) & {candidates.field for candidates in CANDIDATES.values()}
    assert shares == sorted(shares)
    assert len(shares) == 2 * 3
    assert shares[-1] == 1.0
    with batch_sizes(pipeline.unet) as sizes:
        gate_only = calibrate(pipeline, *study, FAST, modes=())
    assert not sizes
    assert gate_only.settings.saliency == FAST.saliency
    assert gate_only.settings.mask == found.settings.mask


def test_gate_of_a_model_with_a_student_is_judged_as_requests_are_answered(pipeline: CDMPipeline, study: Study) -> None:
    paths, tags = study
    with_student = pipeline.with_networks(student=tiny_student(num_classes=1), training={"calibration": {"noise_levels": "kept"}})
    found = calibrate(with_student, paths, tags, FAST, modes=())
    alone = calibrate(pipeline, paths, tags, FAST, modes=()).record
    assert found.record["gate_threshold"] != alone["gate_threshold"]
    smoothing = found.record["gate_smoothing_mm"]["chosen"]
    assert found.record["classifier_alone"]["slice_auc"] == alone["gate_smoothing_mm"]["slice_auc"][f"{smoothing:g}"]
    assert "classifier_alone" not in alone

    calibrated = found.of(with_student)
    assert calibrated.config.training["calibration"] == {"noise_levels": "kept", **found.record}
    threshold = found.record["gate_threshold"]["chosen"]
    for method in ("student", "cdm_saliency"):
        own = calibrated.settings_for(method)
        assert own.mask.gate_threshold == threshold
    scores, states = [], []
    for name, path in paths.items():
        answer = calibrated.segment(read_volume(path), calibrated.settings_for("student"))
        scores += answer.slice_scores["blob"]
        states += tags.states(name, len(answer.slice_scores["blob"]))[:, 0].tolist()
    decided, present = np.array(scores) >= threshold, np.array(states) == 1
    hits, wrong = (decided & present).sum(), (decided != present).sum()
    assert found.record["gate_threshold"]["slice_f1"] == pytest.approx(2 * hits / (2 * hits + wrong), abs=1e-4)


def test_cg_cdm_is_judged_at_the_level_chosen_for_the_published_algorithm(pipeline: CDMPipeline, study: Study) -> None:
    together = calibrate(pipeline, *study, FAST, modes=("cg_cdm", "reference"))
    level = together.settings.saliency.reference_noise_level
    after = FAST.replace(saliency=FAST.saliency.replace(reference_noise_level=level))
    assert together.record["cg_cdm_guidance_scale"] == calibrate(pipeline, *study, after, modes=("cg_cdm",)).record["cg_cdm_guidance_scale"]
    assert together.settings.saliency.guidance_scale == 0  # no other mode is guided by it


def test_mode_without_a_free_number_is_refused(pipeline: CDMPipeline, study: Study) -> None:
    with pytest.raises(ValueError, match=r"mode\(s\) \['intensity'\] have nothing to choose; those that have are \['parallel'"):
        calibrate(pipeline, *study, FAST, modes=("parallel", "intensity"))


def test_f1_counts_empty_slices_as_a_class_where_classes_exclude_each_other() -> None:
    states = np.array([[PRESENT, ABSENT]] * 3 + [[ABSENT, PRESENT]] + [[ABSENT, ABSENT]] * 2 + [[UNKNOWN, ABSENT]])
    everything_first = np.tile([True, False], (7, 1))
    # first class: 3 of 3 found, 3 wrong (the unknown slice does not count); second: none of 1; empty: none of 2
    assert slice_f1(everything_first, states) == pytest.approx((2 * 3 / (2 * 3 + 3) + 0) / 2)
    assert slice_f1(everything_first, states, exclusive_classes=True) == pytest.approx((2 * 3 / (2 * 3 + 3) + 0 + 0) / 3)
    right = states == PRESENT
    assert slice_f1(right, states, exclusive_classes=True) == 1.0
    right[4] = True, False  # an empty slice taken for the first class
    assert slice_f1(right, states, exclusive_classes=True) == pytest.approx((6 / 7 + 1 + 2 / 3) / 3)
