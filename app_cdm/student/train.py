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
        self._model, self._data, self._votes, self._settings, self._stage = model, data, votes, settings, stage
        self._saliency = [saliency_probabilities(data, found, saliency, settings.slice_smoothing) for found in votes]
        self._student: StudentNetwork | None = None
        self._number = 0

    def learn(self, decoder: PixelDecoder) -> StudentNetwork:
        """One more round: a new student.

        Args:
            decoder: whose map is one of the opinions.
        """
        data, settings, stage, number = self._data, self._settings, self._stage, self._number
        targets = torch.zeros(len(data.slices), len(data.class_names), *data.slices.shape[2:])
        for class_index, found in enumerate(self._votes):
            targets[found.index, class_index] = self._taught(class_index, found.index, decoder)
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

    def _taught(self, class_index: int, index: torch.Tensor, decoder: PixelDecoder) -> torch.Tensor:
        """Probabilities that a round learns from; kept on disk, so that resuming does not make them again."""
        data, stage = self._data, self._stage
        stage.folder.mkdir(parents=True, exist_ok=True)
        path = stage.folder / f"teacher_{self._number}_{class_index}.safetensors"
        if not path.exists():
            opinions = [
                self._saliency[class_index],
                decoder_probabilities(self._model, decoder, data, index, class_index),
                *([] if self._student is None else [student_probabilities(self._student, data, index, class_index)]),
            ]
            name = f"teacher {self._number} {data.class_names[class_index]}"
            with tqdm(total=len(index), desc=name, disable=not stage.progress, mininterval=5) as bar:
                taught = teach(data, index, opinions, lambda done: bar.update(done - bar.n))
            save_checkpoint(path, {"probabilities": taught}, {"run_id": stage.run_id})
        return load_checkpoint(path)[0]["probabilities"]
