"""The end of a cohort: a table of all cases, made anew from what is in the output folder."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app_cdm.cohort.cases import Case
from app_cdm.cohort.outcomes import Outcomes
from app_cdm.data.writing import write_atomically

FILE = "summary.csv"
MAX_SHOWN = 10


@dataclass(frozen=True)
class Line:
    """One case of the table.

    Attributes:
        name: of the case.
        source: where its image is.
        result: what its JSON says; None where it has none.
        reason: why it failed; empty where it did not.
    """

    name: str
    source: str
    result: dict[str, Any] | None
    reason: str

    @property
    def status(self) -> str:
        """`done`, `failed`, or `open`: neither, yet."""
        return "done" if self.result is not None else "failed" if self.reason else "open"


def read_lines(cases: Sequence[Case], outcomes: Outcomes) -> list[Line]:
    """What has become of every case, in order."""
    return [_line(case, outcomes) for case in cases]


def write_summary(lines: Sequence[Line], outcomes: Outcomes) -> None:
    """Writes the table; equal outcomes give an equal table, whichever process writes it.

    Raises:
        OSError: the disk refuses; what was there is untouched.
    """
    names = outcomes.class_names
    columns = ["name", "source", "status"]
    columns += [f"{what}_{name}" for name in names for what in ("voxels", "ml", "score")] + ["model_version", "seconds", "reason"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        result = line.result or {}
        numbers = [result.get(what, {}).get(name, "") for name in names for what in ("voxels", "ml", "class_scores")]
        seconds = result.get("seconds", sum(result.get("timings", {}).values()) if result else "")
        writer.writerow([line.name, line.source, line.status, *numbers, result.get("model_version", ""), seconds, line.reason])
    write_atomically(outcomes.folder / FILE, text.getvalue().encode())


def describe(lines: Sequence[Line], outcomes: Outcomes) -> list[str]:
    """The table in short: how many, volumes by class, and why some failed."""
    done = [line.result for line in lines if line.result is not None]
    failed = [line for line in lines if line.status == "failed"]
    shown = [f"{len(lines)} cases: {len(done)} done, {len(failed)} failed; every one in {outcomes.folder / FILE}"]
    if done:
        width = max(len("class"), *map(len, outcomes.class_names))
        shown.append(f"{'class':<{width}}  {'found in':>8}  {'median ml':>9}  {'largest ml':>10}")
    for name in outcomes.class_names if done else ():
        volumes_ml = [ml for result in done if (ml := result.get("ml", {}).get(name, 0.0)) > 0]
        numbers = (statistics.median(volumes_ml), max(volumes_ml)) if volumes_ml else (0.0, 0.0)
        shown.append(f"{name:<{width}}  {len(volumes_ml):>8}  {numbers[0]:>9.2f}  {numbers[1]:>10.2f}")
    shown += [f"failed: {line.name}: {line.reason}" for line in failed[:MAX_SHOWN]]
    if len(failed) > MAX_SHOWN:
        shown.append(f"and {len(failed) - MAX_SHOWN} more")
    return shown


def _line(case: Case, outcomes: Outcomes) -> Line:
    try:
        result = outcomes.result(case.name)
    except ValueError as error:
        return Line(case.name, case.source, None, f"its result cannot be read, remove it: {error}")
    failure = outcomes.failure(case.name)
    return Line(case.name, case.source, result, failure.reason if failure and result is None else "")
