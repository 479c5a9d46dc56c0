"""The demo's figure: image, map of the model, mask and truth, one row a case."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from demo.cases import Case
from demo.client import Answer, Grid
from demo.report import Score, align

TITLES = ("image", "map of the model", "mask from the server", "truth")
COLOURS = {2: "#00d7ff", 3: "#ffd000"}


def draw_figure(cases: list[Case], answers: list[Answer], scores: list[Score], path: Path) -> None:
    """Writes a PNG; each row shows the slice with most of the lesion, or the middle slice of a case without one."""
    figure = Figure(figsize=(9.0, 2.35 * len(cases)), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), len(TITLES), squeeze=False)
    for row, case, answer, score in zip(axes, cases, answers, scores, strict=True):
        _draw_row(row, case, answer, score)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, color="white", fontsize=11)
    figure.savefig(path, dpi=110)


def _draw_row(axes: npt.NDArray[np.object_], case: Case, answer: Answer, score: Score) -> None:
    reference = Grid(case.image, case.geometry.affine.astype(np.float64))
    index = int(case.mask.sum(axis=(0, 1)).argmax()) if case.mask.any() else case.image.shape[2] // 2
    image = _plane(case.image[:, :, index], reference.affine)
    window = (0.0, float(np.percentile(case.image[case.image > case.image.mean()], 99.5)))
    saliency, mask = (_aligned(grid, reference, index) for grid in (answer.saliency, answer.mask))
    top = max(float(answer.saliency.values.max()), 1e-6)
    axes[1].imshow(saliency, cmap="magma", vmin=0.0, vmax=top, aspect="equal")
    contours = {2: mask, 3: _plane(case.mask[:, :, index], reference.affine)}
    for column in (0, 2, 3):
        axes[column].imshow(image, cmap="gray", vmin=window[0], vmax=window[1], aspect="equal")
        if column in contours:
            _overlay(axes[column], contours[column] > 0, COLOURS[column])
    for axis in axes:
        axis.set_axis_off()
    result = f"Dice {score.dice:.2f}" if score.true_ml > 0 else f"no lesion, {score.mask_ml:.1f} ml marked"
    axes[0].text(0.02, 0.02, case.spec.case_id, color="white", fontsize=8, transform=axes[0].transAxes)
    axes[2].text(0.02, 0.02, result, color="white", fontsize=8, transform=axes[2].transAxes)


def _aligned(grid: Grid, reference: Grid, index: int) -> npt.NDArray[np.float64]:
    """A slice of an answer on the case's grid; empty if the grids differ."""
    aligned = align(grid, reference)
    values = np.zeros(reference.values.shape) if aligned is None else aligned.values
    return _plane(values[:, :, index], reference.affine)


def _plane(plane: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows from anterior to posterior, columns from the patient's right to left, as radiologists look at it."""
    signs = nib.orientations.io_orientation(affine)[:2, 1]
    shown = np.asarray(plane, dtype=np.float64)
    shown = shown[::-1] if signs[0] > 0 else shown
    shown = shown[:, ::-1] if signs[1] > 0 else shown
    return shown.T


def _overlay(axis: Axes, mask: npt.NDArray[np.bool_], colour: str) -> None:
    if mask.any():
        axis.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.30)
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
