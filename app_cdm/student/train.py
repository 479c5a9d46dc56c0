"""The student stage: rounds of teaching and learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app_cdm.cldf.train import Teacher
from app_cdm.cldf.votes import Votes
from app_cdm.config import SaliencySettings
from app_cdm.data.dataset import TaggedSlices
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.networks.student import StudentNetwork
from app_cdm.saliency.base import SaliencyModel
from app_cdm.student.pseudo import pseudo_masks
from app_cdm.student.settings import StudentSettings
from app_cdm.student.task import StudentTask
from app_cdm.training.loop import TrainingLoop
from app_cdm.training.stage import Stage


class StudentTraining:
    """Rounds of a student; no pixel label is read.

    In every round a new network learns from the mean of the diffusion map, a decoder's map and the map of the student
    before it, refined along image edges ("noisy student", Xie et al. 2020).

    Args:
        model: the networks of the diffusion model.
        data: the tagged slices.
        votes: of each class, see `find_votes`.
        saliency: as the votes were made.
        settings: network and loss.
        stage: where and how to run.
    """

    def __init__(
        self,
        model: SaliencyModel,
        data: TaggedSlices,
        votes: Sequence[Votes],
        saliency: SaliencySettings,
        settings: StudentSettings,
        stage: Stage,
    ) -> None:
        self._data, self._settings, self._stage = data, settings, stage
        self._teacher = Teacher(model, data, votes, saliency, settings.slice_smoothing, stage)
        self._student: StudentNetwork | None = None
        self._number = 0

    def learn(self, decoder: PixelDecoder) -> StudentNetwork:
        """One more round: a new student.

        Args:
            decoder: whose map is one of the opinions.
        """
        data, settings, stage, number = self._data, self._settings, self._stage, self._number
        targets = torch.zeros(len(data.slices), len(data.class_names), *data.slices.shape[2:])
        for class_index, found in enumerate(self._teacher.votes):
            targets[found.index, class_index] = self._teacher.taught(class_index, number, decoder, self._student)
        masks = pseudo_masks(targets, data.states, settings.ignored_band, settings.negative_weight)
        torch.manual_seed(stage.seed + number)
        network = StudentNetwork(
            len(data.class_names), settings.num_neighbours, settings.channels, settings.num_res_units, settings.dropout
        )
        task = StudentTask(f"student_{number}", network, data, masks, settings)
        TrainingLoop(task, settings.optimizer, stage.folder, stage.run_id, stage.seed + number, stage.device, stage.watch).run(
            stage.progress
        )
        self._student, self._number = network.requires_grad_(False), number + 1
        return self._student
