"""What an evaluation found: figures with intervals, every case, JSON and Markdown."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NAN = float("nan")


@dataclass(frozen=True)
class Figure:
    """A mean with its bootstrap 95 % interval over patients.

    Attributes:
        mean: NaN where no value is defined.
        low: lower bound.
        high: upper bound.
        n: number of values.
        num_undefined: values that are undefined, such as the distance to an empty mask; not in the mean.
    """

    mean: float = NAN
    low: float = NAN
    high: float = NAN
    n: int = 0
    num_undefined: int = 0


@dataclass(frozen=True)
class CaseScores:
    """Scores of one image; slice lists run over its slices with a non-empty reference (positive) or an empty one (negative).

    Attributes:
        error: what went wrong, else empty. A failed case counts as an empty mask, one without a readable reference is not scored.
        volume_hd95_px: in voxels of the file, whatever their spacing.
        volume_hd95_mm: NaN unless the geometry was said to be real.
        is_found: whether the mask overlaps the reference, per positive slice.
        is_clean: whether the mask is empty, per negative slice.
        scores: classifier score with tag, one a slice (one a volume for the protocol `volume`).
    """

    image_id: str
    patient_id: str
    error: str = ""
    num_slices: int = 0
    volume_dice: float = NAN
    volume_iou: float = NAN
    volume_hd95_px: float = NAN
    volume_hd95_mm: float = NAN
    slice_dice: tuple[float, ...] = ()
    slice_iou: tuple[float, ...] = ()
    slice_hd95_px: tuple[float, ...] = ()
    is_found: tuple[bool, ...] = ()
    is_clean: tuple[bool, ...] = ()
    scores: tuple[tuple[float, bool], ...] = ()
    network_evaluations: int = 0
    seconds: float = NAN


@dataclass(frozen=True)
class EvaluationReport:
    """Result of `app_cdm.evaluation.evaluate`.

    Attributes:
        dataset: name of the dataset folder.
        class_name: the class.
        model_version: of the weights.
        evaluation: the `EvaluationSettings` as plain values.
        segmentation: the `SegmentationSettings` as plain values.
        num_cases: images evaluated.
        num_patients: patients among them.
        num_errors: images that failed.
        figures: name -> figure, in the order of the table.
        network_evaluations_per_slice: U-Net evaluations divided by slices.
        seconds_per_case: median wall time.
        cases: every image.
    """

    dataset: str
    class_name: str
    model_version: str
    evaluation: dict[str, Any]
    segmentation: dict[str, Any]
    num_cases: int
    num_patients: int
    num_errors: int
    figures: dict[str, Figure]
    network_evaluations_per_slice: float
    seconds_per_case: float
    cases: tuple[CaseScores, ...]

    def to_json(self) -> str:
        """Strict JSON; NaN becomes null."""
        return json.dumps(_without_nan(dataclasses.asdict(self)), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EvaluationReport:
        """Reads what `to_json` wrote.

        Raises:
            TypeError: a field is missing or unknown.
        """
        values = json.loads(text)
        figures = {name: Figure(**_with_nan(figure)) for name, figure in values.pop("figures").items()}
        cases = tuple(_case_from(case) for case in values.pop("cases"))
        for name in ("network_evaluations_per_slice", "seconds_per_case"):
            values[name] = NAN if values[name] is None else values[name]
        return cls(**values, figures=figures, cases=cases)

    def save(self, path: Path) -> None:
        """Writes the JSON file."""
        path.write_text(self.to_json())


def format_report(report: EvaluationReport) -> str:
    """The report as a Markdown table: figure, mean with 95 % interval over patients, n, undefined values."""
    split, protocol = report.evaluation.get("split"), report.evaluation.get("protocol")
    lines = [
        f"{report.dataset} {split}, class `{report.class_name}`, protocol `{protocol}`, model {report.model_version}: "
        f"{report.num_cases} images of {report.num_patients} patients, {report.num_errors} errors, "
        f"{report.seconds_per_case:.1f} s an image, {report.network_evaluations_per_slice:.1f} network evaluations a slice",
        "",
        "| figure | mean [95 % interval] | n | undefined |",
        "|---|---|---|---|",
    ]
    for name, figure in report.figures.items():
        value = "-" if np.isnan(figure.mean) else f"{figure.mean:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
        lines.append(f"| {name} | {value} | {figure.n} | {figure.num_undefined} |")
    return "\n".join(lines) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_nan(item) for item in value)
    return NAN if value is None else value


def _case_from(values: dict[str, Any]) -> CaseScores:
    return CaseScores(**_with_nan(values))
