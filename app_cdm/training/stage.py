"""The stages of a run, and where and how each works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from app_cdm.training.loop import Watch
from app_cdm.training.settings import TrainSettings
from app_cdm.training.team import Team

StageName = Literal["classifier", "diffusion", "cldf", "student"]
FIRST_STAGES: tuple[StageName, ...] = ("classifier", "diffusion")
LATER_STAGES: tuple[StageName, ...] = ("cldf", "student")


@dataclass(frozen=True)
class RunPlan:
    """What a run does.

    Attributes:
        settings: of every stage.
        folder: of checkpoints and logs.
        device: where to train.
        progress: show progress bars.
        stages: which are run.
        watches: stage -> what ends its loops early.
        team: the processes that do it together.
    """

    settings: TrainSettings
    folder: Path
    device: torch.device
    progress: bool
    stages: tuple[StageName, ...]
    watches: Mapping[str, Watch] = field(default_factory=dict)
    team: Team = field(default_factory=Team)


@dataclass(frozen=True)
class Stage:
    """Where and how one stage of a run works.

    Attributes:
        folder: its own folder; checkpoints in it belong to `run_id`.
        run_id: hash of everything that the stage depends on.
        seed: of every random draw.
        device: where to train.
        progress: show progress bars.
        watch: of every loop of the stage.
        team: the processes that do it together.
    """

    folder: Path
    run_id: str
    seed: int
    device: torch.device
    progress: bool = True
    watch: Watch = field(default_factory=Watch)
    team: Team = field(default_factory=Team)
