"""How the minutes of a training are shared among its stages, from what a step of each takes on this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from app_cdm.cldf.features import extract_features
from app_cdm.cldf.votes import collect_votes, inputs_of
from app_cdm.config import SaliencySettings, Settings, ranged
from app_cdm.data.dataset import TaggedSlices
from app_cdm.data.tags import TagTable
from app_cdm.networks.presets import build_classifier, build_condition_embedding, build_scheduler, build_unet
from app_cdm.networks.student import StudentNetwork
from app_cdm.saliency.base import SaliencyModel
from app_cdm.student.pseudo import PseudoMasks
from app_cdm.student.task import StudentTask
from app_cdm.training.loop import TrainingTask
from app_cdm.training.settings import WARM_UP_SHARE, TrainSettings
from app_cdm.training.stage import FIRST_STAGES, LATER_STAGES
from app_cdm.training.tasks import ClassifierTask, ConditionalDenoiser, DiffusionTask

SHARES: dict[str, float] = {"classifier": 0.12, "diffusion": 0.48, "cldf": 0.1, "student": 0.3}
LEAST_TRAINING = 0.4  # of the budget, whatever maps take
PROBED_SLICES = 8
MAPPED_SLICES = 2
LONGEST = 1e12


@dataclass(frozen=True)
class Speeds(Settings):
    """What this machine takes, in seconds.

    Attributes:
        classifier: a step.
        diffusion: a step.
        student: a step.
        votes: the maps of a slice on which a class is tagged present.
        features: the features of a slice.
    """

    classifier: float = ranged(0.0, 0.0, LONGEST)
    diffusion: float = ranged(0.0, 0.0, LONGEST)
    student: float = ranged(0.0, 0.0, LONGEST)
    votes: float = ranged(0.0, 0.0, LONGEST)
    features: float = ranged(0.0, 0.0, LONGEST)

    @classmethod
    def measured(cls, settings: TrainSettings, stages: Sequence[str], device: torch.device) -> Speeds:
        """Runs a part of a step of each network, untrained, on noise; takes as long as a few steps of the diffusion model.

        What the stages do not need stays 0.
        """
        with torch.random.fork_rng(devices=[]):
            return cls(**_measure(settings, stages, device))


def measured_once(path: Path, settings: TrainSettings, stages: Sequence[str], device: torch.device) -> Speeds:
    """Measures, or reads what an interrupted run of the same folder has measured: its budgets must stay what they were."""
    if path.exists():
        return Speeds.load(path)
    speeds = Speeds.measured(settings, stages, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(speeds.to_dict()))
    os.replace(temporary, path)
    return speeds


def count_mapped_slices(tags: TagTable) -> int:
    """Slices tagged present over all classes; *present somewhere* counts once."""
    values = (value for by_class in tags.tags.values() for value in by_class.values())
    ranges = (((0, 0),) if value is True else value or () for value in values)
    return sum(last - first + 1 for parts in ranges for first, last in parts)


@dataclass(frozen=True)
class Budget:
    """Seconds of every stage.

    Attributes:
        seconds: stage -> seconds of optimisation, all rounds together.
        maps_s: estimated seconds of maps and features, made between the first stages and the later ones.
    """

    seconds: Mapping[str, float]
    maps_s: float

    @classmethod
    def by_shares(cls, stages: Sequence[str]) -> Budget:
        """Parts of one second, where nothing is known of this machine."""
        return cls(_by_shares(1.0, stages), 0.0)

    @classmethod
    def shared(cls, minutes: float, stages: Sequence[str], settings: TrainSettings, speeds: Speeds, num_mapped: int) -> Budget:
        """Shares the minutes.

        Maps get what they will take, and all else is shared as `SHARES` says. Where first and later stages are trained together,
        classifier, decoder and student get no more than their default steps take; what they leave goes to the diffusion model, which needs
        by far the most. Where maps would take more than 60 %, the training takes longer than it was told.

        Args:
            minutes: of the whole training.
            stages: that are trained.
            settings: default steps.
            speeds: of this machine.
            num_mapped: slices that maps are made of.
        """
        total, has_later = 60 * minutes, bool(set(stages) & set(LATER_STAGES))
        passes = sum(settings.num_rounds(stages).values())  # cached once, then the decoder's maps before every other round
        maps_s = num_mapped * (speeds.votes + passes * speeds.features) if has_later else 0.0
        seconds = _by_shares(max(total - maps_s, LEAST_TRAINING * total), stages)
        if "diffusion" in seconds:
            capped = {stage: min(own, _wanted_s(stage, stages, settings, speeds)) for stage, own in seconds.items() if stage != "diffusion"}
            left = sum(seconds.values()) - sum(capped.values())
            seconds = {stage: capped.get(stage, left) for stage in stages}
        return cls(seconds, maps_s)

    def done(self, shares: Mapping[str, float]) -> float:
        """Share of the whole training that is behind.

        Args:
            shares: stage -> share of its own that is behind, of those that have begun. The first stages end before the next begins;
                decoder and student take turns.
        """
        begun = [stage for stage in self.seconds if stage in shares]
        is_later = bool(set(begun) & set(LATER_STAGES))
        over = {stage for stage in begun if stage in FIRST_STAGES and (is_later or stage != begun[-1])}
        behind = sum(self.seconds[stage] * (1.0 if stage in over else min(1.0, shares[stage])) for stage in begun)
        return (behind + (self.maps_s if is_later else 0.0)) / (sum(self.seconds.values()) + self.maps_s)


def warmed_up_in_time(settings: TrainSettings, budget: Budget, speeds: Speeds) -> TrainSettings:
    """Settings whose warm-up takes no more than a tenth of the steps that the budget allows.

    A classifier that gets 120 steps would otherwise end before its learning rate has risen.
    """
    changed = settings
    for stage in FIRST_STAGES:
        own, step_s = getattr(settings, stage), getattr(speeds, stage)
        if stage in budget.seconds and step_s > 0:
            steps = min(own.num_warmup_steps, int(WARM_UP_SHARE * budget.seconds[stage] / step_s))
            changed = changed.replace(**{stage: own.replace(num_warmup_steps=steps)})
    return changed


def _measure(settings: TrainSettings, stages: Sequence[str], device: torch.device) -> dict[str, float]:
    data, scheduler = _noise(settings.network.image_size), build_scheduler()
    unet, embedding = build_unet(settings.network).to(device), build_condition_embedding(settings.network, 1).to(device)
    classifier = build_classifier(settings.network, 1).to(device)
    found = {}
    if "classifier" in stages:
        found["classifier"] = _step_s(ClassifierTask(classifier, scheduler, data, settings), settings.classifier.batch_size, device)
    if "diffusion" in stages:
        task = DiffusionTask(ConditionalDenoiser(unet, embedding), scheduler, data, settings)
        found["diffusion"] = _step_s(task, settings.diffusion.batch_size, device)
    if not set(stages) & set(LATER_STAGES):
        return found
    own, blank = settings.student, torch.zeros_like(data.slices)
    student = StudentNetwork(1, own.num_neighbours, own.channels, own.num_res_units, own.dropout).to(device)
    found["student"] = _step_s(StudentTask("student", student, data, PseudoMasks(blank, blank + 1), own), own.optimizer.batch_size, device)
    for network in (unet, embedding, classifier):
        network.eval().requires_grad_(False)
    model = SaliencyModel(unet, embedding, classifier, scheduler, settings.network.patch_size)
    inputs = inputs_of(data, torch.arange(MAPPED_SLICES), 0)
    found["votes"] = _seconds(lambda: collect_votes(model, inputs, SaliencySettings()), device) / MAPPED_SLICES
    found["features"] = _seconds(lambda: extract_features(model, inputs, settings.cldf.features), device) / MAPPED_SLICES
    return found


def _noise(size: int) -> TaggedSlices:
    """Slices of noise, every other one tagged present."""
    slices = torch.rand(PROBED_SLICES, 1, size, size) * 2 - 1
    states = (torch.arange(PROBED_SLICES) % 2)[:, None].to(torch.int8)
    positions = torch.linspace(0, 1, PROBED_SLICES)
    return TaggedSlices(slices, states, positions, torch.zeros(PROBED_SLICES, dtype=torch.long), ("noise",), ("noise",))


def _step_s(task: TrainingTask, batch_size: int, device: torch.device) -> float:
    """Seconds of a step, from one with fewer slices."""
    generator = torch.Generator().manual_seed(0)
    return _seconds(lambda: task.loss(generator, PROBED_SLICES).backward(), device) * batch_size / PROBED_SLICES


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the faster of two calls: the first one also allocates."""
    taken = []
    for _ in range(2):
        began = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.monotonic() - began)
    return min(taken)


def _by_shares(seconds: float, stages: Sequence[str]) -> dict[str, float]:
    total = sum(SHARES[stage] for stage in stages)
    return {stage: seconds * SHARES[stage] / total for stage in stages}


def _wanted_s(stage: str, stages: Sequence[str], settings: TrainSettings, speeds: Speeds) -> float:
    """What the default steps of a stage take; a step of the decoder, which reads cached features, about half a student's."""
    if stage == "classifier":
        return settings.classifier.num_steps * speeds.classifier
    own = settings.student if stage == "student" else settings.cldf
    num_steps = settings.num_rounds(stages)[stage] * own.optimizer.num_steps
    return num_steps * speeds.student * (1.0 if stage == "student" else 0.5)
