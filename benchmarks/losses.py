"""Where the Dice of a method is lost: in the resolution, in the mask of a slice that holds the target, or in the gate."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from app_cdm.data.slices import cut_slices
from app_cdm.data.volume import read_volume
from app_cdm.metrics.overlap import dice, slice_dice
from app_cdm.metrics.reference import find_reference_cases, read_reference
from app_cdm.metrics.report import EvaluationReport
from app_cdm.pipeline import CDMPipeline
from benchmarks.reference_slices import share_of_pixels

FAILURE = 0.1


def measure_ceiling(data: Path, pipeline: CDMPipeline, result: Path) -> None:
    """Reference masks of `lgg` test at the resolution of the networks and back, against themselves; unless that is there.

    Args:
        data: folder that holds lgg/.
        pipeline: says how slices are cut.
        result: JSON file with `volume_dice` and `slice_dice`.
    """
    if result.exists():
        return
    volumes, slices = list[float](), list[float]()
    for case in find_reference_cases(data / "lgg", "test", "has_lesion", "flair"):
        volume = read_volume(case.image)
        reference = read_reference(case, volume, ())
        geometry = cut_slices(volume, pipeline.description.preprocess).geometry
        back = geometry.to_volume(torch.from_numpy(share_of_pixels(reference, geometry))) > 0.5
        volumes.append(dice(back, reference))
        slices += slice_dice(back, reference)[reference.any(axis=(0, 1))].tolist()
    temporary = result.with_suffix(".part")
    temporary.write_text(json.dumps({"volume_dice": float(np.mean(volumes)), "slice_dice": float(np.mean(slices))}))
    os.replace(temporary, result)


def loss_table(run: Path, methods: Sequence[str]) -> list[str]:
    """Markdown lines from the results in the run folder; none where the ceiling has not been measured."""
    if not (run / "ceiling.json").exists():
        return []
    ceiling = json.loads((run / "ceiling.json").read_text())
    lines = [
        "| | volume Dice | lost | slice Dice | lost | volumes below 0.1 |",
        "|---|---|---|---|---|---|",
        _line("reference masks at the networks' resolution and back", (1.0, 1.0), (ceiling["volume_dice"], ceiling["slice_dice"]), 0),
    ]
    for name in methods:
        tags, rest = run / f"tags_{name}.json", run / f"rest_{name}.json"
        if tags.exists() and rest.exists():
            report, scored = EvaluationReport.from_json(tags.read_text()), json.loads(rest.read_text())
            given = report.figures["volume_dice"].mean, report.figures["slice_dice"].mean
            decided = scored["summary"]["volume_dice"], scored["summary"]["slice_dice"]
            failed = sum(case.volume_dice < FAILURE for case in report.cases)
            lines.append(_line(f"`{name}`, slices given", (ceiling["volume_dice"], ceiling["slice_dice"]), given, failed))
            failed = sum(case["volume_dice"] < FAILURE for case in scored["cases"])
            lines.append(_line(f"`{name}`, the gate decides", given, decided, failed))
    return lines


def _line(name: str, before: tuple[float, float], after: tuple[float, float], failed: int) -> str:
    cells = [f"{value:.3f} | {value - earlier:+.3f}" for earlier, value in zip(before, after, strict=True)]
    return f"| {name} | {' | '.join(cells)} | {failed} |"
