"""Masks of a model against expert masks of a validation or test split."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from app_cdm.config import SegmentationSettings, Settings, SettingsError, ranged
from app_cdm.data.volume import Volume, read_volume
from app_cdm.metrics.bootstrap import Weighting, bootstrap_auc, bootstrap_mean
from app_cdm.metrics.overlap import dice, iou, slice_dice, slice_iou
from app_cdm.metrics.reference import ReferenceCase, find_reference_cases, read_reference
from app_cdm.metrics.report import CaseScores, EvaluationReport, Figure, format_report
from app_cdm.metrics.surface import hd95_mm, hd95_px, slice_hd95_px
from app_cdm.pipeline import Segmentation

__all__ = ["EvaluationReport", "EvaluationSettings", "Segmenter", "evaluate", "format_report"]

LOGGER = logging.getLogger(__name__)
SLICING_AXIS = 2
EvaluationProtocol = Literal["tag_given", "all_slices", "volume"]


class Segmenter(Protocol):
    """What is evaluated; `CDMPipeline` is one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class i has mask value i + 1."""

    @property
    def default_settings(self) -> SegmentationSettings:
        """Settings stored with the weights."""

    @property
    def model_version(self) -> str:
        """Version of the weights."""

    def segment(
        self,
        volume: Volume,
        settings: SegmentationSettings | None = None,
        class_names: Sequence[str] | None = None,
        positive_slices: Mapping[str, Sequence[bool]] | None = None,
    ) -> Segmentation:
        """Segments one volume."""


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """What to evaluate.

    Attributes:
        protocol: `tag_given` hands the slices tagged positive to the model, as the papers do; in `all_slices` and `volume` the model's own
            gate decides, and slices or whole volumes are scored.
        split: of the dataset's table; never `train`.
        class_name: the class; may be empty where the model has one.
        column: 0/1 tag column of that class.
        modality: part of the image names after the id, such as `flair`; may be empty where an id has one image.
        reference_values: values of the reference masks that count; any above 0 where empty, which a model of several classes refuses if the
            masks hold several.
        is_geometry_real: whether spacing is measured, not nominal; only then distances are given in mm too.
        limit: at most this many images; 0 takes all.
    """

    protocol: EvaluationProtocol = "all_slices"
    split: str = "test"
    class_name: str = ""
    column: str = "has_lesion"
    modality: str = ""
    reference_values: tuple[int, ...] = ()
    is_geometry_real: bool = False
    limit: int = ranged(0, 0, 10**9)

    def check(self) -> None:
        if self.split == "train":
            raise SettingsError("EvaluationSettings.split = 'train': must be a split for evaluation; training images carry tags only")


def evaluate(
    pipeline: Segmenter,
    dataset: Path,
    evaluation: EvaluationSettings | None = None,
    settings: SegmentationSettings | None = None,
    progress: Callable[[float], None] | None = None,
) -> EvaluationReport:
    """Segments every image of a split and compares the masks with the reference.

    Slices are those of the file's last axis, which the datasets' tables count. One image that fails is recorded and counts as an empty
    mask; the others go on.

    Args:
        pipeline: the model.
        dataset: folder with `images/`, `masks/` and `slices.csv` or `images.csv` (see `find_reference_cases`).
        evaluation: what to evaluate.
        settings: of the segmentation; the model's defaults where None. Their slicing axis is set to the last one.
        progress: called with the share done, 0 to 1.

    Raises:
        FileNotFoundError: the dataset lacks a table, an image or a mask.
        ValueError: the split is `train` or empty, the class is unknown, or which values of the masks are of it.

    Example:
        >>> report = evaluate(pipeline, Path("lgg"), EvaluationSettings(protocol="tag_given"))  # doctest: +SKIP
        >>> print(format_report(report))  # doctest: +SKIP
    """
    evaluation = evaluation or EvaluationSettings()
    settings = (settings or pipeline.default_settings).replace(slicing_axis=SLICING_AXIS)
    class_name = evaluation.class_name or pipeline.class_names[0]
    if class_name not in pipeline.class_names or (not evaluation.class_name and len(pipeline.class_names) > 1):
        raise ValueError(f"class_name = {evaluation.class_name!r}: must be one of {list(pipeline.class_names)}")
    found = find_reference_cases(dataset, evaluation.split, evaluation.column, evaluation.modality)[: evaluation.limit or None]
    if len(pipeline.class_names) > 1 and not evaluation.reference_values:
        _check_labels(found, class_name)
    cases = []
    for number, case in enumerate(found):
        cases.append(_evaluate_case(pipeline, case, class_name, evaluation, settings))
        if progress is not None:
            progress((number + 1) / len(found))
    return _report(pipeline, dataset.resolve().name, class_name, evaluation, settings, cases)


def _check_labels(cases: Sequence[ReferenceCase], class_name: str) -> None:
    """Refuses masks of several labels, not all of which can be the class."""
    labels: set[int] = set()
    for case in cases:
        with suppress(ValueError, OSError):  # a mask that cannot be read is recorded with its case
            labels.update(int(label) for label in np.unique(read_volume(case.reference).array) if label > 0)
    if len(labels) > 1:
        raise ValueError(f"the reference masks hold the values {sorted(labels)}: say which are {class_name!r} (--reference-values)")


def _evaluate_case(
    pipeline: Segmenter, case: ReferenceCase, class_name: str, evaluation: EvaluationSettings, settings: SegmentationSettings
) -> CaseScores:
    """Scores one image; whatever goes wrong is recorded, so that it cannot lose the other images."""
    scores = CaseScores(case.image_id, case.patient_id)
    try:
        volume = read_volume(case.image)
        reference = read_reference(case, volume, evaluation.reference_values)
    except (ValueError, OSError) as error:
        return _failed(scores, error)
    mask, start = np.zeros_like(reference), time.perf_counter()
    try:
        given = {class_name: case.tags} if evaluation.protocol == "tag_given" else None
        result = pipeline.segment(volume, settings, class_names=[class_name], positive_slices=given)
        ranked = _ranked(result, class_name, case, evaluation.protocol)
        mask = result.mask == pipeline.class_names.index(class_name) + 1
        scores = replace(scores, scores=ranked, network_evaluations=result.network_evaluations)
    except Exception as error:
        scores = _failed(scores, error)
    scores = replace(scores, seconds=time.perf_counter() - start, num_slices=reference.shape[SLICING_AXIS])
    return _score_volume(scores, mask, reference, volume, evaluation)


def _failed(scores: CaseScores, error: Exception) -> CaseScores:
    LOGGER.warning("%s failed", scores.image_id, exc_info=error)
    return replace(scores, error=f"{type(error).__name__}: {error}")


def _ranked(result: Segmentation, class_name: str, case: ReferenceCase, protocol: EvaluationProtocol) -> tuple[tuple[float, bool], ...]:
    """The model's own scores beside the tags."""
    if protocol == "volume":
        return ((result.class_scores[class_name], any(case.tags)),)
    return tuple(zip(result.slice_scores[class_name], case.tags, strict=True))


def _score_volume(
    scores: CaseScores, mask: np.ndarray, reference: np.ndarray, volume: Volume, evaluation: EvaluationSettings
) -> CaseScores:
    scores = replace(
        scores,
        volume_dice=dice(mask, reference),
        volume_iou=iou(mask, reference),
        volume_hd95_px=hd95_px(mask, reference),
        volume_hd95_mm=hd95_mm(mask, reference, volume.spacing_mm) if evaluation.is_geometry_real else float("nan"),
    )
    if evaluation.protocol == "volume":
        return scores
    holds, marked = reference.any(axis=(0, 1)), mask.any(axis=(0, 1))
    overlaps = (mask & reference).any(axis=(0, 1))
    return replace(
        scores,
        slice_dice=tuple(slice_dice(mask, reference)[holds].tolist()),
        slice_iou=tuple(slice_iou(mask, reference)[holds].tolist()),
        slice_hd95_px=tuple(slice_hd95_px(mask, reference)[holds].tolist()),
        is_found=tuple(overlaps[holds].tolist()),
        is_clean=tuple((~marked[~holds]).tolist()),
    )


def _report(
    pipeline: Segmenter,
    dataset: str,
    class_name: str,
    evaluation: EvaluationSettings,
    settings: SegmentationSettings,
    cases: Sequence[CaseScores],
) -> EvaluationReport:
    scored = [case for case in cases if case.num_slices]
    num_slices = sum(case.num_slices for case in scored)
    return EvaluationReport(
        dataset=dataset,
        class_name=class_name,
        model_version=pipeline.model_version,
        evaluation=evaluation.to_dict(),
        segmentation=settings.to_dict(),
        num_cases=len(cases),
        num_patients=len({case.patient_id for case in cases}),
        num_errors=sum(bool(case.error) for case in cases),
        figures=_figures(scored, evaluation),
        network_evaluations_per_slice=sum(case.network_evaluations for case in scored) / num_slices if num_slices else float("nan"),
        seconds_per_case=float(np.median([case.seconds for case in scored])) if scored else float("nan"),
        cases=tuple(cases),
    )


def _figures(cases: Sequence[CaseScores], evaluation: EvaluationSettings) -> dict[str, Figure]:
    """Volumes are averaged by patient, slices alike, as the papers do."""
    volume = ["volume_dice", "volume_iou", "volume_hd95_px"] + ["volume_hd95_mm"] * evaluation.is_geometry_real
    figures = {name: _figure([(case.patient_id, [getattr(case, name)]) for case in cases], "patient") for name in volume}
    if evaluation.protocol != "volume":
        for name in ("slice_dice", "slice_iou", "slice_hd95_px", "is_found", "is_clean"):
            shown = {"is_found": "found_share", "is_clean": "clean_negatives"}.get(name, name)
            figures[shown] = _figure([(case.patient_id, getattr(case, name)) for case in cases], "value")
    ranked: dict[str, list[tuple[float, bool]]] = {}
    for case in cases:
        ranked.setdefault(case.patient_id, []).extend(case.scores)
    figures["tag_auc"] = Figure(*bootstrap_auc(ranked), n=sum(len(rows) for rows in ranked.values()))
    return figures


def _figure(rows: Sequence[tuple[str, Sequence[float]]], weighting: Weighting) -> Figure:
    values: dict[str, list[float]] = {}
    for patient, numbers in rows:
        values.setdefault(patient, []).extend(float(number) for number in numbers)
    pooled = np.array([number for numbers in values.values() for number in numbers])
    num_undefined = int(np.isnan(pooled).sum())
    return Figure(*bootstrap_mean(values, weighting=weighting), n=len(pooled) - num_undefined, num_undefined=num_undefined)
