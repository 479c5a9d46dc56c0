"""Settings that image-level tags of held-out images can choose: the slice gate, and the free number of saliency modes.

No pixel label is read. The gate is judged by how well slice scores tell tagged slices apart, a noise level or guidance
scale by how well the peak of its saliency map does; the candidates are in `app_cdm.saliency.candidates`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from app_cdm.config import SaliencyMode, SaliencySettings, SegmentationSettings
from app_cdm.data.slices import SliceStack, cut_slices
from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN, TagError, TagTable
from app_cdm.data.volume import read_volume
from app_cdm.metrics.ranking import tag_auc
from app_cdm.pipeline import CDMPipeline
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.candidates import CANDIDATES, candidate_peaks
from app_cdm.segmentation.gate import is_likeliest, slice_logits, slice_scores

DEFAULT_MODES: tuple[SaliencyMode, ...] = ("parallel", "reference")
GATE_SMOOTHINGS_MM = (0.0, 2.0, 4.0, 6.0)


@dataclass(frozen=True)
class Calibration:
    """What was chosen.

    Attributes:
        settings: the given settings with gate threshold, gate smoothing and the free numbers of modes replaced.
        record: the criteria of every candidate, as plain values.
    """

    settings: SegmentationSettings
    record: dict[str, Any]

    def of(self, pipeline: CDMPipeline) -> CDMPipeline:
        """The model with what was chosen as its defaults; what was chosen before and not now stays in its record."""
        record = {**dict(pipeline.config.training).get("calibration", {}), **self.record}
        return pipeline.with_settings(self.settings, {"calibration": record})


@dataclass(frozen=True)
class _Case:
    stack: SliceStack
    states: np.ndarray  # (S, C) in stack order
    logits: np.ndarray  # (S, C)


def calibrate(
    pipeline: CDMPipeline,
    paths: Mapping[str, Path],
    tags: TagTable,
    settings: SegmentationSettings,
    modes: Collection[SaliencyMode] = DEFAULT_MODES,
    progress: Callable[[float], None] | None = None,
) -> Calibration:
    """Chooses gate threshold, gate smoothing and the free number of each mode.

    The smoothing has the highest area under the ROC curve of slice scores, the threshold the highest F1 of slices, the
    number of a mode the highest area under the curve of its maps' peaks; each a mean over classes.

    Args:
        pipeline: a trained model.
        paths: held-out images, of patients that training has not seen.
        tags: their tags.
        settings: everything else.
        modes: whose numbers to choose, of `CANDIDATES`; those of other modes stay as they are.
        progress: called with the share done.

    Raises:
        TagError: a class lacks slices tagged present or absent.
        ValueError: a mode has nothing to choose.
    """
    unknown = sorted(set(modes) - set(CANDIDATES))
    if unknown:
        raise ValueError(f"mode(s) {unknown} have nothing to choose; those that have are {list(CANDIDATES)}")
    if tags.class_names != pipeline.class_names:
        raise TagError(f"the tags name classes {tags.class_names}, the model {pipeline.class_names}")
    cases = [_read_case(pipeline, image, path, tags) for image, path in paths.items()]
    smoothing, smoothing_aucs = _choose_smoothing(cases)
    exclusive = pipeline.description.exclusive_classes
    threshold, f1 = _choose_threshold(cases, smoothing, exclusive)
    saliency, numbers = _choose_numbers(pipeline, cases, settings.saliency, modes, progress)
    mask = settings.mask.replace(gate_threshold=threshold, gate_smoothing_mm=smoothing)
    if pipeline.student is not None:  # for comparison: what the joint gate is worth
        alone = [replace(case, logits=slice_logits(pipeline.classifier, case.stack.slices).numpy()) for case in cases]
        auc = mean_auc(_gate_scores(alone, smoothing), np.concatenate([case.states for case in alone]))
        numbers["classifier_alone"] = {"slice_auc": round(auc, 4), "slice_f1": _choose_threshold(alone, smoothing, exclusive)[1]}
    record = {
        "num_images": len(cases),
        "num_slices": int(sum(len(case.states) for case in cases)),
        "tag_set_sha256": tags.digest(),
        "gate_smoothing_mm": {"chosen": smoothing, "slice_auc": smoothing_aucs},
        "gate_threshold": {"chosen": threshold, "slice_f1": f1},
        **numbers,
    }
    return Calibration(settings.replace(saliency=saliency, mask=mask), record)


def _read_case(pipeline: CDMPipeline, image: str, path: Path, tags: TagTable) -> _Case:
    stack = cut_slices(read_volume(path), pipeline.description.preprocess)
    states = stack.geometry.to_file_order(tags.states(image, stack.slices.shape[0]))
    return _Case(stack, states, pipeline.gate_logits(stack))


def mean_auc(scores: np.ndarray, states: np.ndarray) -> float:
    """Area under the ROC curve of `(N, C)` scores against tag states, a mean over classes; unknown slices do not count.

    Raises:
        TagError: a class lacks slices tagged present or absent.
    """
    areas = []
    for scored, state in zip(scores.T, states.T, strict=True):
        if not (state == PRESENT).any() or not (state == ABSENT).any():
            raise TagError("the held-out tags must hold present and absent slices of every class")
        known = state >= 0
        areas.append(tag_auc(scored[known].tolist(), (state[known] == PRESENT).tolist()))
    return float(np.mean(areas))


def _gate_scores(cases: list[_Case], smoothing_mm: float) -> np.ndarray:
    """`(N, C)` smoothed scores of all slices."""
    spacing = [case.stack.geometry.slice_spacing_mm for case in cases]
    columns = [
        np.stack([slice_scores(logits, gap, smoothing_mm) for logits in case.logits.T], axis=1)
        for case, gap in zip(cases, spacing, strict=True)
    ]
    return np.concatenate(columns)


def _choose_smoothing(cases: list[_Case]) -> tuple[float, dict[str, float]]:
    states = np.concatenate([case.states for case in cases])
    areas = {smoothing: mean_auc(_gate_scores(cases, smoothing), states) for smoothing in GATE_SMOOTHINGS_MM}
    return max(areas, key=lambda smoothing: areas[smoothing]), {f"{key:g}": round(value, 4) for key, value in areas.items()}


def _choose_threshold(cases: list[_Case], smoothing_mm: float, exclusive_classes: bool) -> tuple[float, float]:
    """Threshold with the highest F1 of slices; the middle of all that share it."""
    scores, states = _gate_scores(cases, smoothing_mm), np.concatenate([case.states for case in cases])
    candidates, likeliest = np.linspace(0.02, 0.98, 97), is_likeliest(scores, exclusive_classes)
    values = np.array([slice_f1((scores >= threshold) & likeliest, states, exclusive_classes) for threshold in candidates])
    best = candidates[values >= values.max() - 1e-9]
    return round(float(best[len(best) // 2]), 2), round(float(values.max()), 4)


def slice_f1(positive: np.ndarray, states: np.ndarray, exclusive_classes: bool = False) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN) of `(N, C)` decisions; unknown slices do not count.

    Where classes exclude each other, to hold none of them is one more class, so that empty slices weigh as much as those of a class.
    """
    if exclusive_classes:
        is_empty = np.where((states == PRESENT).any(axis=1), ABSENT, np.where((states == ABSENT).all(axis=1), PRESENT, UNKNOWN))
        positive, states = np.column_stack([positive, ~positive.any(axis=1)]), np.column_stack([states, is_empty])
    hits = (positive & (states == PRESENT)).sum(axis=0)
    wrong = (positive & (states == ABSENT)).sum(axis=0) + (~positive & (states == PRESENT)).sum(axis=0)
    return float(np.mean(2 * hits / np.maximum(2 * hits + wrong, 1)))


def _choose_numbers(
    pipeline: CDMPipeline,
    cases: list[_Case],
    settings: SaliencySettings,
    modes: Collection[SaliencyMode],
    progress: Callable[[float], None] | None,
) -> tuple[SaliencySettings, dict[str, Any]]:
    """Settings with the number of each mode whose map has the most telling peak, and the criterion of every candidate."""
    model = pipeline.saliency_model()
    states, record = np.concatenate([case.states for case in cases]), {}
    chosen_modes = [mode for mode in CANDIDATES if mode in modes]
    for number, mode in enumerate(chosen_modes):
        peaks = []
        for done, case in enumerate(cases):
            peaks.append(_peaks(model, case.stack, mode, settings))
            if progress is not None:
                progress((number + (done + 1) / len(cases)) / len(chosen_modes))
        candidates = CANDIDATES[mode]
        areas = [mean_auc(scores, states) for scores in np.concatenate(peaks, axis=1)]
        best = candidates.values[int(np.argmax(areas))]
        settings = settings.replace(**{candidates.field: best})
        named = {name: round(area, 4) for name, area in zip(candidates.names, areas, strict=True)}
        record[candidates.field] = {"mode": mode, "chosen": list(best) if isinstance(best, tuple) else best, "peak_auc": named}
    return settings, record


def _peaks(model: SaliencyModel, stack: SliceStack, mode: SaliencyMode, settings: SaliencySettings) -> np.ndarray:
    """`(K, S, C)` peaks of K candidates in every slice, for every class."""
    indices = tuple(range(stack.slices.shape[0]))
    by_class = [
        candidate_peaks(model, SaliencyInputs(stack.slices, stack.positions, indices, index), mode, settings)
        for index in range(model.num_classes)
    ]
    return np.stack([peaks.numpy() for peaks in by_class], axis=2)
