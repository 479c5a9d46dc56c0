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

from app_cdm.training.loop import Progress

logger = logging.getLogger(__name__)

State = Literal["running", "published", "kept back", "failed"]
WRITE_EVERY_S = 1.0
LOG_EVERY_S = 10.0
PERCENT = 100
MAX_NAMED = 3


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
        left_out: tagged images that are not learned from, because they cannot be read, and why.
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
    left_out: dict[str, str] = field(default_factory=dict)
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
    """

    def __init__(self, path: Path) -> None:
        self._path, self._written_at, self._logged_at = path, 0.0, 0.0
        now = time.time()
        self.status = TrainStatus("running", os.getpid(), message="reading images", started=now, updated=now)
        self._write()

    def leave_out(self, images: dict[str, str]) -> None:
        """Takes note of images that are not learned from, and why."""
        self.status = replace(self.status, left_out=images)
        self._write()

    def report(self, progress: Progress, done: float) -> None:
        """Takes the news of a training loop, named after its stage and round, and the share of the whole training that is behind."""
        if time.monotonic() - self._written_at < WRITE_EVERY_S and progress.share < 1.0:
            return
        stage, loss = progress.name.partition("_")[0], progress.loss if math.isfinite(progress.loss) else 0.0
        percent, message = round(PERCENT * min(1.0, done), 1), f"{progress.name}: step {progress.step}"
        self.status = replace(self.status, stage=stage, percent=percent, loss=loss, message=message)
        self._write()
        if time.monotonic() - self._logged_at >= LOG_EVERY_S:  # the last lines are what `GET /train/` shows
            self._logged_at = time.monotonic()
            logger.info("%s of the training, %s, loss %.4f", f"{percent:g} %", message, loss)

    def end(self, state: State, message: str, version: str = "", scores: tuple[dict[str, float], dict[str, float]] = ({}, {})) -> None:
        """The training is over."""
        found, before = ({name: value for name, value in part.items() if math.isfinite(value)} for part in scores)
        if self.status.left_out:
            named = "; ".join(f"{image} ({why})" for image, why in list(self.status.left_out.items())[:MAX_NAMED])
            message += f"; {len(self.status.left_out)} tagged image(s) left out, which cannot be read: {named}"
        percent = float(PERCENT) if state != "failed" else self.status.percent
        self.status = replace(
            self.status, state=state, message=message, version=version, percent=percent, held_out=found, held_out_before=before
        )
        self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        self.status = replace(self.status, updated=time.time())
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self.status)))
        os.replace(temporary, self._path)
