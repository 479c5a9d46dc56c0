"""How far a training is, in a file that the training process writes and the server reads."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from app_cdm.training.retrain import SHARES, RetrainSettings

logger = logging.getLogger(__name__)

State = Literal["running", "published", "kept back", "failed"]
WRITE_EVERY_S = 1.0
LOG_EVERY_S = 10.0
PERCENT = 100


class TrainingBusyError(Exception):
    """A training is running; the message says how far it is and what to do."""


@dataclass(frozen=True)
class TrainStatus:
    """One training, as seen from outside; every number is finite.

    Attributes:
        state: `running`, `published`, `kept back` (worse than the model in use) or `failed`.
        process: id of the training process.
        stage: of the optimisation, such as `diffusion`.
        percent: of the budget that is spent.
        loss: mean loss of the stage.
        message: what happened, for the user.
        version: that was published.
        held_out: scores on held-out tags.
        held_out_before: those of the model that was in use.
        started: seconds since 1970.
        updated: the same.
    """

    state: State
    process: int
    stage: str = ""
    percent: float = 0.0
    loss: float = 0.0
    message: str = ""
    version: str = ""
    held_out: dict[str, float] = field(default_factory=dict)
    held_out_before: dict[str, float] = field(default_factory=dict)
    started: float = 0.0
    updated: float = 0.0


def read_status(path: Path) -> TrainStatus | None:
    """The last training's status; None while there was none, or where the file is damaged."""
    try:
        return TrainStatus(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


class StatusWriter:
    """Writes the status of the process that it is made in.

    Args:
        path: the file.
        settings: stages and budget.
        num_rounds: rounds of the stages that have several.
    """

    def __init__(self, path: Path, settings: RetrainSettings, num_rounds: dict[str, int]) -> None:
        self._path, self._settings, self._num_rounds = path, settings, num_rounds
        self._written_at, self._logged_at, self._began = 0.0, 0.0, {"": time.monotonic()}
        now = time.time()
        self.status = TrainStatus("running", os.getpid(), message="reading images", started=now, updated=now)
        self._write()

    def report(self, name: str, step: int, num_steps: int, loss: float) -> None:
        """Takes the news of a training loop, named after its stage and round."""
        self._began.setdefault(name, time.monotonic())
        if time.monotonic() - self._written_at < WRITE_EVERY_S and step < num_steps:
            return
        stage, _, number = name.partition("_")
        finite = loss if math.isfinite(loss) else 0.0
        self.status = replace(
            self.status, stage=stage, percent=self._percent(name, stage, int(number or 0)), loss=finite, message=f"{name}: step {step}"
        )
        self._write()
        if time.monotonic() - self._logged_at >= LOG_EVERY_S:  # the last lines are what `GET /train/` shows
            self._logged_at = time.monotonic()
            logger.info("%s of the budget, %s: step %d, loss %.4f", f"{self.status.percent:g} %", name, step, finite)

    def end(self, state: State, message: str, version: str = "", scores: tuple[dict[str, float], dict[str, float]] = ({}, {})) -> None:
        """The training is over."""
        found, before = ({name: value for name, value in part.items() if math.isfinite(value)} for part in scores)
        percent = float(PERCENT) if state != "failed" else self.status.percent
        self.status = replace(
            self.status, state=state, message=message, version=version, percent=percent, held_out=found, held_out_before=before
        )
        self._write()

    def _percent(self, name: str, stage: str, number: int) -> float:
        """Share of the budget behind the stages that are over, and of this one's own."""
        stages = self._settings.stages
        total = sum(SHARES[item] for item in stages)
        rounds = self._num_rounds.get(stage, 1)
        behind = sum(SHARES[item] for item in stages[: stages.index(stage)]) + SHARES[stage] * number / rounds
        budget_s = 60 * self._settings.minutes * SHARES[stage] / total / rounds
        spent = min(1.0, (time.monotonic() - self._began[name]) / budget_s)
        return round(PERCENT * (behind + spent * SHARES[stage] / rounds) / total, 1)

    def _write(self) -> None:
        self._written_at = time.monotonic()
        self.status = replace(self.status, updated=time.time())
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self.status)))
        os.replace(temporary, self._path)
