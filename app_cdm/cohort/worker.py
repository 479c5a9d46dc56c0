"""One process at a cohort: takes what nobody has, takes over what a process left that died, and stays until every case is settled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from app_cdm.cohort.cases import Case
from app_cdm.cohort.claims import MAX_ATTEMPTS, Claim, Claims, Refusal
from app_cdm.cohort.outcomes import Failure, Outcomes
from app_cdm.config import SegmentationSettings
from app_cdm.pipeline import CDMPipeline

LOGGER = logging.getLogger(__name__)
POLL_S = 0.5

T = TypeVar("T")
Report = Callable[[str, Failure | None], None]


@dataclass(frozen=True)
class Worker:
    """What a process works with.

    Attributes:
        pipeline: the model.
        settings: of the segmentation.
        outcomes: of the output folder.
        claims: of the output folder.
    """

    pipeline: CDMPipeline
    settings: SegmentationSettings
    outcomes: Outcomes
    claims: Claims

    def work(self, cases: Sequence[Case], start: int, report: Report) -> int:
        """Works until every case has a result or a reason why not, whichever process wrote it.

        Args:
            cases: all of them; every process is given the same.
            start: where in them this process starts; it goes round.
            report: called with each case that is found settled, and its failure.

        Returns:
            How many cases this process has segmented.

        Raises:
            OSError: results cannot be written; no other case would fare better.
        """
        waiting = [*cases[start:], *cases[:start]]
        count = 0
        while waiting:
            held = []
            for case in waiting:
                settled, segmented = self._try(case)
                count += segmented
                if settled:
                    report(case.name, None if segmented else self.outcomes.failure(case.name))
                else:
                    held.append(case)
            if len(held) == len(waiting):
                time.sleep(POLL_S)
            waiting = held
        return count

    def _try(self, case: Case) -> tuple[bool, bool]:
        """Whether a case is settled now, and whether this process has segmented it."""
        if self.outcomes.is_settled(case.name):
            return True, False
        claim = self.claims.take(case.name)
        if claim is Refusal.EXHAUSTED:
            reason = f"the process that worked on it died {MAX_ATTEMPTS} times"
            self.outcomes.write_failure(case.name, Failure(reason, "died", case.source, MAX_ATTEMPTS))
            self.claims.forget_dead(case.name)
            return True, False
        if not isinstance(claim, Claim):
            return False, False
        try:
            # Whoever had it may have settled it between the two looks.
            segmented = not self.outcomes.is_settled(case.name) and self._segment(case, claim)
        except torch.AcceleratorError:  # nothing runs on that device any more: this process is dead but for its last words
            self.claims.abandon(claim)
            raise OSError(f"the device failed at {case.name}: start this process again") from None
        except BaseException:
            self.claims.release(claim)
            raise
        self.claims.forget(claim)
        return self.outcomes.is_settled(case.name), segmented

    def _segment(self, case: Case, claim: Claim) -> bool:
        """Segments a case and writes what became of it; returns whether the case has this result now."""
        started = time.perf_counter()
        try:
            volume = case.read()
            result = self.pipeline.segment(volume, self.settings)
            seconds = time.perf_counter() - started
            is_written = self._write(lambda: self.outcomes.write_result(
                case.name, result, volume, self.settings, seconds, lambda: self.claims.owns(claim)
            ))  # fmt: skip
        except (_OutputError, torch.AcceleratorError):
            raise
        except Exception as error:  # whatever is wrong with one image, the others go on
            LOGGER.debug("%s", case.name, exc_info=True)
            reason = " ".join(str(error).split()) or type(error).__name__
            failure = Failure(reason, type(error).__name__, case.source, claim.attempt)
            if self.claims.owns(claim):
                self._write(lambda: self.outcomes.write_failure(case.name, failure))
            LOGGER.info("failed: %s", case.name)
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            return False
        LOGGER.info("%s: %s", "done" if is_written else "done elsewhere", case.name)
        return is_written

    def _write(self, write: Callable[[], T]) -> T:
        try:
            return write()
        except OSError as error:
            raise _OutputError(f"cannot write to {self.outcomes.folder}: {error.strerror or error}") from error


class _OutputError(OSError):
    """The output folder takes nothing; not the fault of a case."""
