"""The student stage: rounds of teaching and learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from app_cdm.cldf.votes import Votes
from app_cdm.config import SaliencySettings
from app_cdm.data.dataset import TaggedSlices
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.networks.student import StudentNetwork
from app_cdm.saliency.base import SaliencyModel
from app_cdm.student.pseudo import pseudo_masks
from app_cdm.student.settings import StudentSettings
from app_cdm.student.task import StudentTask
from app_cdm.training.checkpoint import load_checkpoint, save_checkpoint
from app_cdm.training.loop import TrainingLoop
from app_cdm.training.stage import Stage
from app_cdm.training.teacher import decoder_probabilities, saliency_probabilities, student_probabilities, teach


def train_student(
    model: SaliencyModel,
    decoder: PixelDecoder,
    data: TaggedSlices,
    votes: Sequence[Votes],
    saliency: SaliencySettings,
    settings: StudentSettings,
    stage: Stage,
) -> StudentNetwork:
    """Trains a student in rounds; no pixel label is read.

    In every round a new network learns from the mean of the diffusion map, the decoder's map and the map of the student
    before it, refined along image edges ("noisy student", Xie et al. 2020).

    Args:
        model: the networks of the diffusion model.
        decoder: its pixel decoder.
        data: the tagged slices.
        votes: of each class, see `find_votes`.
        saliency: as the votes were made.
        settings: network and rounds.
        stage: where and how to run.
    """
    fixed = [
        [
            saliency_probabilities(data, found, saliency, settings.slice_smoothing),
            decoder_probabilities(model, decoder, data, found.index, class_index),
        ]
        for class_index, found in enumerate(votes)
    ]
    student: StudentNetwork | None = None
    for number in range(settings.num_rounds):
        targets = torch.zeros(len(data.slices), len(data.class_names), *data.slices.shape[2:])
        for class_index, (found, opinions) in enumerate(zip(votes, fixed, strict=True)):
            targets[found.index, class_index] = _taught(data, class_index, found.index, opinions, student, stage, number)
        masks = pseudo_masks(targets, data.states, settings.ignored_band, settings.negative_weight)
        torch.manual_seed(stage.seed + number)
        network = StudentNetwork(
            len(data.class_names), settings.num_neighbours, settings.channels, settings.num_res_units, settings.dropout
        )
        task = StudentTask(f"student_{number}", network, data, masks, settings)
        TrainingLoop(task, settings.optimizer, stage.folder, stage.run_id, stage.seed + number, stage.device, stage.watch).run(
            stage.progress
        )
        student = network
    assert student is not None  # num_rounds is at least one
    return student.requires_grad_(False)


def _taught(
    data: TaggedSlices,
    class_index: int,
    index: torch.Tensor,
    opinions: Sequence[torch.Tensor],
    student: StudentNetwork | None,
    stage: Stage,
    number: int,
) -> torch.Tensor:
    """Probabilities that a round learns from; kept on disk, so that resuming does not make them again."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    path = stage.folder / f"teacher_{number}_{class_index}.safetensors"
    if not path.exists():
        heard = [*opinions, *([] if student is None else [student_probabilities(student, data, index, class_index)])]
        with tqdm(
            total=len(index), desc=f"teacher {number} {data.class_names[class_index]}", disable=not stage.progress, mininterval=5
        ) as bar:
            taught = teach(data, index, heard, lambda done: bar.update(done - bar.n))
        save_checkpoint(path, {"probabilities": taught}, {"run_id": stage.run_id})
    return load_checkpoint(path)[0]["probabilities"]
