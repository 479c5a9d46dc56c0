"""The outside scorer, `score_rest.py`, as a subprocess: masks of a running server against reference masks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cost import FORWARD_PROCESS


@dataclass(frozen=True)
class Row:
    """One line of a table: a name, the infer task, and the request parameters that differ from the model's defaults."""

    name: str
    key: str
    parameters: dict[str, Any] = field(default_factory=dict)
    method: str = "cdm_saliency"


METHODS = (
    Row("**`student`**", "student", method="student"),
    Row("**`cldf`**", "cldf", method="cldf"),
    Row("`cdm_saliency`, `parallel` (its default)", "parallel"),
    Row("`derivative`", "derivative", {"mode": "derivative"}),
    Row("`reference`: CDM as published (tau .95, R = 10)", "reference", {"mode": "reference"}),
    Row("`cg_cdm`: the same, guided by the classifier", "cg_cdm", {"mode": "cg_cdm"}),
    Row("`cg_diff`: CG-Diff (50 steps)", "cg_diff", {"mode": "cg_diff"}),
    Row("`forward_process`: after AnoFPDM", "forward_process", FORWARD_PROCESS),
    Row("`gradient` of the classifier", "gradient", {"mode": "gradient"}),
    Row("`layer_cam`", "layer_cam", {"mode": "layer_cam"}),
    Row("`grad_cam`", "grad_cam", {"mode": "grad_cam"}),
    Row("`intensity`: Otsu of the image itself", "intensity", {"mode": "intensity"}),
)

# `cldf` and `student` are refined by default; so that this is not what they win by, every other map is too.
REFINED = tuple(
    Row(f"{row.name.partition(':')[0]}, refined", f"{row.key}_refined", {**row.parameters, "refinement": "appearance"})
    for row in METHODS
    if row.method == "cdm_saliency"
)
ROWS = (*METHODS, *REFINED)


class ScoreError(RuntimeError):
    """The scorer counted errors or wrong geometry; its output says where."""


def score_over_rest(
    scorer: Path,
    url: str,
    row: Row,
    dataset: Path,
    split: str,
    result: Path,
    *,
    limit: int | None = None,
    values: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Summary of the scorer for one row; what is in the result's file already is not scored again.

    Args:
        scorer: `score_rest.py`.
        url: of the server.
        row: what to ask it for.
        dataset: folder with `images/`, `masks/` and a table.
        split: of the table.
        result: JSON file of every case and the summary.
        limit: only so many cases.
        values: of one class, in the reference and in the answer; without them, anything above 0 counts in both.

    Raises:
        ScoreError: the scorer counted errors or wrong geometry.
    """
    if not result.exists():
        temporary = result.with_suffix(".part")
        command = [sys.executable, str(scorer), "--server", url, "--model", row.method, "--dataset", str(dataset)]
        command += ["--split", split, "--out", str(temporary)] + (["--limit", str(limit)] if limit else [])
        if values is not None:
            command += ["--label", str(values[0]), "--answer-label", str(values[1])]
        for name, value in row.parameters.items():
            command += ["--param", f"{name}={json.dumps(value)}"]
        print(f"== {row.key}, over REST", flush=True)
        if subprocess.run(command, check=False).returncode:
            raise ScoreError(f"row {row.key}: the scorer counted errors or wrong geometry; see above and {temporary}")
        os.replace(temporary, result)
    summary: dict[str, Any] = json.loads(result.read_text())["summary"]
    return summary
