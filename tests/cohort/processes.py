"""Workers as processes of their own, forked from the tests so that they start at once, and real enough to be killed."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from app_cdm.cli import main
from app_cdm.cohort.cases import Case
from app_cdm.cohort.claims import Claims
from app_cdm.cohort.outcomes import Failure, Outcomes
from app_cdm.cohort.run import Run, begin_or_join
from app_cdm.cohort.worker import Worker
from app_cdm.data.volume import Volume, read_volume
from app_cdm.pipeline import CDMPipeline

FORK = multiprocessing.get_context("fork")


def start(target: Callable[..., object], *arguments: object) -> BaseProcess:
    """Runs a function in a process of its own."""
    process = FORK.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def work(
    pipeline: CDMPipeline,
    cases: Sequence[Case],
    output: Path,
    journal: Path,
    begin: int = 0,
    launch: str = "",
    stale_s: float = 60.0,
) -> None:
    """One process at a cohort; a line of its journal for each case that it has segmented itself."""
    outcomes = Outcomes(output, pipeline.class_names)
    settings = pipeline.default_settings
    with Claims(output / ".claims", stale_s) as claims:
        run = Run.of(pipeline.model_version, settings, outcomes)
        begin_or_join(run, [case.name for case in cases], outcomes, claims, launch, overwrite=False)
        worker = Noting(pipeline, settings, outcomes, claims, journal)
        worker.work(cases, begin, ignore)


class Noting(Worker):
    """A worker that notes what it has written."""

    def __init__(self, pipeline: CDMPipeline, settings: object, outcomes: Outcomes, claims: Claims, journal: Path) -> None:
        super().__init__(pipeline, settings, outcomes, claims)  # type: ignore[arg-type]
        object.__setattr__(self, "journal", journal)

    def _try(self, case: Case) -> tuple[bool, bool]:
        settled, segmented = super()._try(case)
        if segmented:
            with self.journal.open("a") as file:  # type: ignore[attr-defined]
                file.write(f"{case.name}\n")
        return settled, segmented


def ignore(name: str, failure: Failure | None) -> None:
    """A report that nobody reads."""


def make_cases(paths: Sequence[Path], delay_s: float = 0.0) -> list[Case]:
    """Cases of files, read after a delay."""
    return [Case(path.name.removesuffix(".nii.gz"), str(path), partial(read_late, path, delay_s)) for path in paths]


def read_late(path: Path, delay_s: float) -> Volume:
    """Reads an image, slowly."""
    time.sleep(delay_s)
    return read_volume(path)


def stuck_at(cases: Sequence[Case], name: str) -> list[Case]:
    """The same cases, of which one is never read to its end."""
    return [Case(case.name, case.source, partial(time.sleep, 1e6)) if case.name == name else case for case in cases]  # type: ignore[arg-type]


def exit_with(arguments: Sequence[str]) -> None:
    """The command line, in a process of its own; pytest-xdist ignores SIGINT, a terminal's child does not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(arguments))
