"""One training run: read tagged images, train the stages asked for, write a model folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from app_cdm.data.dataset import TaggedSlices, find_images, load_tagged_slices
from app_cdm.data.tags import TagTable
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.networks.presets import build_classifier, build_condition_embedding, build_scheduler, build_unet, sizes_of
from app_cdm.pipeline import CDMPipeline, ModelDescription
from app_cdm.training.bags import settle_bags
from app_cdm.training.checkpoint import CHECKPOINT_SUFFIX, check_run
from app_cdm.training.later import train_later_stages
from app_cdm.training.loop import TrainingLoop, TrainingTask, Watch
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.record import run_record
from app_cdm.training.settings import TrainSettings
from app_cdm.training.sign import choose_sign, rests_on_few
from app_cdm.training.stage import FIRST_STAGES, LATER_STAGES, RunPlan, StageName
from app_cdm.training.tasks import ClassifierTask, ConditionalDenoiser, DiffusionTask
from app_cdm.training.team import Team

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaggedFolder:
    """Images and the table of their tags.

    Attributes:
        images: folder of images.
        tags: their tags.
        pattern: file name of an image, with `{image}` and optionally `{suffix}`.
        paths: image id -> file; found by the pattern where not given.
    """

    images: Path
    tags: TagTable
    pattern: str = "{image}{suffix}"
    paths: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.paths:
            object.__setattr__(self, "paths", find_images(self.images, list(self.tags.tags), self.pattern))

    @classmethod
    def of_files(cls, paths: dict[str, Path], tags: TagTable) -> TaggedFolder:
        """Images that lie anywhere, each a file or the folder of one DICOM series."""
        return cls(Path(), tags, paths=paths)


def train(  # noqa: PLR0913
    folders: list[TaggedFolder],
    settings: TrainSettings,
    run_folder: Path,
    device: str = "cpu",
    progress: bool = True,
    initial_model: Path | None = None,
    stages: Sequence[StageName] = FIRST_STAGES,
    watches: Mapping[str, Watch] | None = None,
    *,
    epochs: float = 0.0,
    team: Team | None = None,
) -> Path:
    """Trains the stages asked for, resuming where an interrupted run of the same settings and tags stopped.

    Several processes call this alike, with the same run folder; the main one writes. A run may be resumed with another number of them.

    Args:
        folders: the images; tags are all that is read beside them.
        settings: the run.
        run_folder: checkpoints, TensorBoard logs, and at the end the model in `model/`.
        device: torch device.
        progress: show progress bars.
        initial_model: start from these weights (fine-tuning) instead of random ones.
        stages: which of `classifier`, `diffusion`, `cldf` and `student`; what is left out comes from the initial model as it is.
        watches: stage -> what ends its loops early.
        epochs: passes over the slices, see `TrainSettings.for_epochs`; 0 takes the numbers of steps of the settings.
        team: the processes that train together; this one alone by default.

    Returns:
        The model folder, in diffusers' layout. A pixel decoder or student that was made for other weights is not in it.

    Raises:
        VolumeError, TagError: an image or tag cannot be used.
        CheckpointError: the run folder belongs to another run.
        ValueError: the initial model has other classes or another network size, lacks what a stage builds on, or keeps a network that
            has learned from slices cut otherwise.
    """
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    run_folder.mkdir(parents=True, exist_ok=True)
    data = _load(folders, settings)
    if epochs:
        settings = settings.for_epochs(epochs, len(data.slices), stages)
    initial = CDMPipeline.from_pretrained(initial_model) if initial_model else None
    if initial is None and not set(FIRST_STAGES) <= set(stages):
        raise ValueError(f"stages {list(stages)} build on a trained model: name it as the initial model, or run {list(FIRST_STAGES)} too")
    if initial is not None and not set(FIRST_STAGES) <= set(stages) and settings.preprocess != initial.description.preprocess:
        raise ValueError(f"the initial model has learned from slices cut by {initial.description.preprocess}, not by {settings.preprocess}")
    record = run_record([folder.tags for folder in folders], settings, data, initial) | {"stages": list(stages)}
    for path in run_folder.glob(f"*{CHECKPOINT_SUFFIX}"):  # before the record of another run is overwritten
        check_run(path, record["run_id"])
    team = team or Team()
    team.wait()
    if team.is_main:
        (run_folder / "run.json").write_text(json.dumps(record, indent=1))
    plan = RunPlan(settings, run_folder, torch.device(device), progress, tuple(stages), watches or {}, team)
    pipeline = _train_diffusion(data, plan, initial, record)
    if set(stages) & set(LATER_STAGES):
        pipeline = train_later_stages(pipeline.to(plan.device), _settled(data, pipeline.classifier, plan), plan)
    if team.is_main:
        pipeline.with_networks(training=record).save_pretrained(run_folder / "model")
    team.wait()
    return run_folder / "model"


def settings_as_in(model: CDMPipeline, settings: TrainSettings) -> TrainSettings:
    """Settings with the sizes and the preprocessing of a model, whatever the preset."""
    network = sizes_of(model.unet, model.classifier)
    return replace(settings, network=network, preprocess=model.description.preprocess)


def _settled(data: TaggedSlices, classifier: NoiseConditionalClassifier, plan: RunPlan) -> TaggedSlices:
    """See `settle_bags`; the main process decides for all."""
    states = plan.team.from_main(lambda: settle_bags(data, classifier).states)
    return replace(data, states=states, bags=data.bags[:0])


def _train_diffusion(data: TaggedSlices, plan: RunPlan, initial: CDMPipeline | None, record: dict[str, Any]) -> CDMPipeline:
    """The model after the stages `classifier` and `diffusion`, or the initial one where neither is asked for."""
    if initial is not None and not set(plan.stages) & set(FIRST_STAGES):
        if initial.class_names != data.class_names:
            raise ValueError(f"the initial model knows classes {list(initial.class_names)}, the tags {list(data.class_names)}")
        return initial.with_networks(replace(initial.description, exclusive_classes=_are_exclusive(data, initial.description)))
    settings, count = plan.settings, len(data.class_names)
    torch.manual_seed(settings.seed)
    scheduler, classifier = build_scheduler(), build_classifier(settings.network, count)
    denoiser = ConditionalDenoiser(build_unet(settings.network), build_condition_embedding(settings.network, count))
    if initial is not None:
        _start_from(initial, denoiser, classifier, data.class_names)

    def run(task: TrainingTask, optimizer: OptimizerSettings, seed: int, more_s: float = 0.0) -> float:
        """Trains, and returns the seconds of its budget that are left."""
        watch = plan.watches.get(task.name, Watch()).with_more(more_s)
        loop = TrainingLoop(task, optimizer, plan.folder, record["run_id"], seed, plan.device, watch, plan.team)
        loop.run(plan.progress)
        return watch.unspent_s(loop.elapsed_s)

    unspent_s = 0.0
    if "classifier" in plan.stages:
        unspent_s = run(ClassifierTask(classifier, scheduler, data, settings), settings.classifier, settings.seed)
    data = _settled(data, classifier, plan)
    if "diffusion" in plan.stages:
        run(DiffusionTask(denoiser, scheduler, data, settings), settings.diffusion, settings.seed + 1, unspent_s)
    description = ModelDescription(data.class_names, settings.network.patch_size, settings.preprocess)
    if initial is not None:  # calibrated settings stay until they are chosen anew
        description = replace(initial.description, preprocess=settings.preprocess)
    description = replace(description, exclusive_classes=data.has_exclusive_classes or _are_exclusive(data, description))
    if initial is not None and "diffusion" not in plan.stages:  # decoder and student stay with the weights that they were made for
        return initial.with_networks(description, classifier=classifier)
    pipeline = CDMPipeline(denoiser.unet, denoiser.condition_embedding, classifier, scheduler, description.to_dict(), record)
    keeps_sign = initial is not None and not rests_on_few(initial.config.training)
    return pipeline if keeps_sign else _with_sign(pipeline, data, plan)


def _are_exclusive(data: TaggedSlices, description: ModelDescription) -> bool:
    """Whether classes go on to exclude each other: what many tags have said is true until a slice has two of them, or none is empty."""
    return description.exclusive_classes and data.allows_exclusive_classes


def _with_sign(pipeline: CDMPipeline, data: TaggedSlices, plan: RunPlan) -> CDMPipeline:
    """The model with the sign of its saliency chosen, which the stages after it build on; the main process decides for all."""
    chosen = pipeline.settings_for("cdm_saliency")
    model = pipeline.saliency_model()
    sign, found = plan.team.from_main(lambda: choose_sign(model, data, chosen.saliency))
    return pipeline.with_settings(chosen.replace(saliency=chosen.saliency.replace(sign=sign)), {"sign": found})


def _start_from(
    initial: CDMPipeline, denoiser: ConditionalDenoiser, classifier: NoiseConditionalClassifier, class_names: tuple[str, ...]
) -> None:
    """Copies the weights of a trained model into new networks."""
    if initial.class_names != class_names:
        raise ValueError(f"the initial model knows classes {list(initial.class_names)}, the tags {list(class_names)}")
    pairs = ((initial.unet, denoiser.unet), (initial.condition_embedding, denoiser.condition_embedding), (initial.classifier, classifier))
    for source, target in pairs:
        try:
            target.load_state_dict(source.state_dict())
        except RuntimeError as error:
            raise ValueError("the initial model has another network size: choose its preset") from error


def _load(folders: list[TaggedFolder], settings: TrainSettings) -> TaggedSlices:
    parts = [load_tagged_slices(folder.paths, folder.tags, settings.preprocess) for folder in folders]
    if len({part.class_names for part in parts}) != 1:
        raise ValueError(f"the tag tables name different classes: {[part.class_names for part in parts]}")
    offsets = [sum(len(part.image_ids) for part in parts[:index]) for index in range(len(parts))]
    return TaggedSlices(
        torch.cat([part.slices for part in parts]),
        torch.cat([part.states for part in parts]),
        torch.cat([part.positions for part in parts]),
        torch.cat([part.volume_index + offset for part, offset in zip(parts, offsets, strict=True)]),
        tuple(image for part in parts for image in part.image_ids),
        parts[0].class_names,
        torch.cat([part.bags + torch.tensor([offset, 0]) for part, offset in zip(parts, offsets, strict=True)]),
    )
