"""Retraining: from the tags there are to a candidate, judged on held-out patients against the model in use."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from app_cdm.calibration import calibrate
from app_cdm.config import Settings, SettingsError, ranged
from app_cdm.data.tags import TagError, TagTable
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.budget import Budget, count_mapped_slices, measured_once, warmed_up_in_time
from app_cdm.training.held_out import MEAN, gate_criterion, held_out_scores, load_held_out, split_patients, with_mean
from app_cdm.training.loop import Monitor, Progress, Watch
from app_cdm.training.run import TaggedFolder, settings_as_in, train
from app_cdm.training.settings import TrainSettings
from app_cdm.training.stage import FIRST_STAGES, LATER_STAGES

UNLIMITED_STEPS = 1_000_000
LOOK_EVERY_STEPS = 50

Report = Callable[[Progress, float], None]


@dataclass(frozen=True)
class RetrainSettings(Settings):
    """What a retraining is told.

    Attributes:
        stages: which stages to train, in their order.
        start: from the `published` model (fine-tuning), or from `scratch`.
        minutes: of training, maps included, see `Budget`.
        epochs: passes over the slices instead of minutes, see `TrainSettings.for_epochs`; where both are 0, the numbers of steps of
            `TrainSettings` count.
        held_out_share: share of the patients that judge and are not trained on.
        patience: looks at held-out tags without a better value, after which the classifier stops.
    """

    stages: tuple[str, ...] = (*FIRST_STAGES, *LATER_STAGES)
    start: Literal["published", "scratch"] = "published"
    minutes: float = ranged(30.0, 0.0, 100_000.0)
    epochs: float = ranged(0.0, 0.0, 100_000.0)
    held_out_share: float = ranged(0.2, 0.0, 0.9)
    patience: int = ranged(10, 1, 1000)

    @property
    def is_timed(self) -> bool:
        """Whether minutes end it."""
        return bool(self.minutes) and not self.epochs

    def check(self) -> None:
        known = [*FIRST_STAGES, *LATER_STAGES]
        if not self.stages or [stage for stage in known if stage in self.stages] != list(self.stages):
            raise SettingsError(f"RetrainSettings.stages = {self.stages}: must be some of {known}, in this order")


@dataclass(frozen=True)
class Candidate:
    """A retrained model, and how it compares.

    Attributes:
        folder: where it is.
        scores: of the candidate on held-out tags, see `held_out_scores`.
        scores_in_use: of the model in use on the same tags; empty where it knows other classes, None without one.
    """

    folder: Path
    scores: dict[str, float]
    scores_in_use: dict[str, float] | None

    @property
    def compared(self) -> tuple[float, float] | None:
        """Means of the candidate and of the model in use over what both are judged by, NaN where that is nothing; None without one."""
        if self.scores_in_use is None:
            return None
        both = self.scores.keys() & self.scores_in_use.keys()
        own, other = (with_mean({name: scores[name] for name in both})[MEAN] for scores in (self.scores, self.scores_in_use))
        return own, other

    @property
    def is_worse(self) -> bool:
        """Whether the model in use tells held-out slices apart better, or nothing says that it does not."""
        return self.compared is not None and not self.compared[0] >= self.compared[1]


def retrain(
    paths: Mapping[str, Path],
    tags: TagTable,
    settings: RetrainSettings,
    train_settings: TrainSettings,
    run_folder: Path,
    in_use: Path | None,
    device: str = "cpu",
    report: Report | None = None,
) -> Candidate:
    """Trains on the tags of most patients and judges on those of the others; an interrupted call of the same kind is resumed.

    Args:
        paths: image id -> file or DICOM folder, for every tagged image.
        tags: all that is learned from.
        settings: stages, start and budget.
        train_settings: the rest; sizes come from the model in use where that is the start.
        run_folder: checkpoints and the candidate.
        in_use: folder of the model in use.
        device: torch device.
        report: called with the progress of a loop, and the share of the whole training that is behind.

    Raises:
        TooFewTagsError: there is too little to learn from; says what is missing.
        VolumeError, TagError: an image or tag cannot be used.
        CheckpointError: the run folder belongs to another run.
        ValueError: the stages build on a model, and there is none.
        FloatingPointError: training diverged.
    """
    learned, judged = split_patients(tags, settings.held_out_share)
    current = CDMPipeline.from_pretrained(in_use) if in_use is not None else None
    if settings.start == "published" and current is not None:
        train_settings = settings_as_in(current, train_settings)
    held_out = load_held_out(paths, judged, train_settings.preprocess)
    budget, steps = Budget.by_shares(settings.stages), dict[str, int]()
    if settings.is_timed:
        speeds = measured_once(run_folder / "speeds.json", train_settings, settings.stages, torch.device(device))
        budget = Budget.shared(settings.minutes, settings.stages, train_settings, speeds, count_mapped_slices(learned))
        train_settings = _unlimited(warmed_up_in_time(train_settings, budget, speeds))
    monitor = Monitor(gate_criterion(held_out), LOOK_EVERY_STEPS, settings.patience)

    def told(progress: Progress, done: float) -> None:
        steps[progress.name] = progress.step
        if report is not None:
            report(progress, done)

    folder = train(
        [TaggedFolder.of_files({image: paths[image] for image in learned.tags}, learned)],
        train_settings,
        run_folder,
        device,
        progress=False,
        initial_model=in_use if settings.start == "published" else None,
        stages=settings.stages,  # type: ignore[arg-type]  # checked by the settings
        watches=_watches(settings, train_settings, budget, monitor, told),
        epochs=settings.epochs,
    )
    pipeline = _calibrated(CDMPipeline.from_pretrained(folder), {image: paths[image] for image in judged.tags}, judged)
    scores = held_out_scores(pipeline, held_out)
    scores_in_use: dict[str, float] | None = None if current is None else {}
    if current is not None and current.class_names == pipeline.class_names:
        cut = _cut_for(current, train_settings, held_out, paths, judged)
        scores_in_use = held_out_scores(current, cut, pipeline.description.exclusive_classes)
    judgement: dict[str, Any] = {"minutes": settings.minutes if settings.is_timed else 0.0, "epochs": settings.epochs, "steps": steps} | {
        "held_out": _finite(scores),
        "held_out_before": _finite(scores_in_use or {}),
        "num_held_out_images": len(judged.tags),
    }
    pipeline.with_networks(training=judgement).save_pretrained(folder, torch.float16)
    return Candidate(folder, scores, scores_in_use)


def _unlimited(settings: TrainSettings) -> TrainSettings:
    """Settings whose loops end by their budget alone."""
    first = {name: getattr(settings, name).replace(num_steps=UNLIMITED_STEPS) for name in FIRST_STAGES}
    later = {}
    for name in LATER_STAGES:
        own = getattr(settings, name)
        later[name] = dataclasses.replace(own, optimizer=own.optimizer.replace(num_steps=UNLIMITED_STEPS))
    return dataclasses.replace(settings, **first, **later)


def _watches(
    settings: RetrainSettings, train_settings: TrainSettings, budget: Budget, monitor: Monitor, report: Report
) -> dict[str, Watch]:
    """Watch of every stage: its budget, in equal parts where a stage has rounds."""
    rounds = train_settings.num_rounds(settings.stages)
    shares = dict[str, float]()

    def told(progress: Progress) -> None:
        stage, _, number = progress.name.partition("_")
        shares[stage] = (int(number or 0) + progress.share) / rounds.get(stage, 1)
        report(progress, budget.done(shares))

    watches = {}
    for stage in settings.stages:
        budget_s = budget.seconds[stage] / rounds.get(stage, 1) if settings.is_timed else None
        watches[stage] = Watch(budget_s, monitor if stage == "classifier" else None, told)
    return watches


def _calibrated(pipeline: CDMPipeline, paths: Mapping[str, Path], judged: TagTable) -> CDMPipeline:
    """The model with its gate chosen on held-out tags; as it is where they lack one of the two states of a class."""
    try:
        found = calibrate(pipeline, paths, judged, pipeline.settings_for("cdm_saliency"), modes=())
    except TagError:
        return pipeline
    return found.of(pipeline)


def _cut_for(current: CDMPipeline, settings: TrainSettings, held_out: Any, paths: Mapping[str, Path], judged: TagTable) -> Any:
    """Held-out slices as a model wants them, who may have learned from others than those of the settings."""
    if settings.preprocess == current.description.preprocess:
        return held_out
    return load_held_out(paths, judged, current.description.preprocess)


def _finite(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in scores.items() if math.isfinite(value)}
