"""The CLDF stage: votes, seeds, cached features, decoder, prototypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from app_cdm.cldf.cache import FeatureCache, half_resolution
from app_cdm.cldf.features import blocks_of
from app_cdm.cldf.seeds import BACKGROUND, FOREGROUND, IGNORED
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.cldf.task import DecoderTask, SeededFeatures, fit_prototypes
from app_cdm.cldf.votes import SLICES_PER_CALL, Votes, collect_votes, inputs_of, seeds_of_class
from app_cdm.config import SaliencySettings
from app_cdm.data.dataset import TaggedSlices
from app_cdm.data.tags import ABSENT, PRESENT
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.networks.presets import NetworkSettings, build_condition_embedding, build_unet
from app_cdm.networks.student import StudentNetwork
from app_cdm.saliency.base import SaliencyModel
from app_cdm.training.checkpoint import check_run, load_checkpoint, save_checkpoint
from app_cdm.training.loop import Progress, TrainingLoop
from app_cdm.training.stage import Stage
from app_cdm.training.teacher import decoder_probabilities, saliency_probabilities, student_probabilities, teach
from app_cdm.training.team import Team


def in_blocks(
    stage: Stage,
    name: str,
    title: str,
    blocks: Sequence[torch.Tensor],
    make: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    team: Team | None = None,
) -> dict[str, torch.Tensor]:
    """Maps of slices, made a block after the other; every finished block is kept as a file, so that resuming does not make it again.

    Args:
        stage: where.
        name: beginning of the files' names.
        title: of the progress bar.
        blocks: rows of the slices of each block, in order.
        make: from the rows of a block to its maps, by name.
        team: the processes that share the blocks; this one alone by default.

    Returns:
        The maps of all rows, by name.

    Raises:
        CheckpointError: a file is of another run.
    """
    team = team or Team()
    stage.folder.mkdir(parents=True, exist_ok=True)
    paths = [stage.folder / f"{name}_{int(rows[0]):06d}.safetensors" for rows in blocks]
    for path in paths:
        check_run(path, stage.run_id)
    own = list(zip(paths, blocks, strict=True))[team.rank :: team.size]
    for path, rows in tqdm(own, desc=title, disable=not (stage.progress and team.is_main), mininterval=5):
        if not path.exists():
            save_checkpoint(path, make(rows), {"run_id": stage.run_id})
    team.wait()
    parts = [load_checkpoint(path)[0] for path in paths]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


@dataclass(frozen=True)
class Teacher:
    """What the rounds of a stage learn from.

    Attributes:
        model: the networks of the diffusion model.
        data: the tagged slices.
        votes: of each class, see `find_votes`.
        saliency: as the votes were made.
        slice_smoothing: of the diffusion map along the slices, in slices.
        stage: where the maps are kept.
    """

    model: SaliencyModel
    data: TaggedSlices
    votes: Sequence[Votes]
    saliency: SaliencySettings
    slice_smoothing: float
    stage: Stage

    def taught(self, class_index: int, number: int, decoder: PixelDecoder, student: StudentNetwork | None) -> torch.Tensor:
        """`(M, H, W)` probabilities on the positive slices of a class: what diffusion map, decoder and student say together, see `teach`.

        Args:
            class_index: the class.
            number: of the round.
            decoder: the latest.
            student: the latest, if there is one.
        """
        data, votes = self.data, self.votes[class_index]

        def make(rows: torch.Tensor) -> dict[str, torch.Tensor]:
            part = votes.select(rows)
            opinions = [
                saliency_probabilities(data, part, self.saliency, self.slice_smoothing),
                decoder_probabilities(self.model, decoder, data, part.index, class_index),
                *([] if student is None else [student_probabilities(student, data, part.index, class_index)]),
            ]
            return {"probabilities": teach(data, part.index, opinions)}

        title = f"teacher {number} {data.class_names[class_index]}"
        return in_blocks(self.stage, f"teacher_{number}_{class_index}", title, _whole_volumes(data, votes.index), make)["probabilities"]


def _whole_volumes(data: TaggedSlices, index: torch.Tensor) -> Sequence[torch.Tensor]:
    """Rows of `index` in blocks of whole volumes, as many as begin within the same sixteen rows."""
    volumes = data.volume_index[index]
    first = torch.searchsorted(volumes, volumes)
    return torch.arange(len(index)).split(torch.unique_consecutive(first // SLICES_PER_CALL, return_counts=True)[1].tolist())


class DecoderTraining:
    """Rounds of the pixel decoder of a frozen diffusion model, on features that are computed once; no pixel label is read.

    Args:
        model: the networks of the diffusion model.
        data: the tagged slices.
        votes: of each class, see `find_votes`.
        saliency: as the votes were made.
        settings: seeds, features and loss.
        network: sizes of the U-Net, for the control with random features.
        stage: where and how to run.
    """

    def __init__(
        self,
        model: SaliencyModel,
        data: TaggedSlices,
        votes: Sequence[Votes],
        saliency: SaliencySettings,
        settings: CLDFSettings,
        network: NetworkSettings,
        stage: Stage,
    ) -> None:
        blocks = blocks_of(model.unet, model.patch_size, settings.features.blocks)
        settings = settings.replace(features=settings.features.replace(blocks=blocks))
        self._data, self._settings, self._stage = data, settings, stage
        torch.manual_seed(stage.seed)
        model = _untrained(model, network) if settings.random_features else model
        self._teacher = Teacher(model, data, votes, saliency, settings.seeds.slice_smoothing, stage)
        self._caches = [FeatureCache(stage.folder / f"features_{c}", settings.max_cache_gib) for c in range(len(data.class_names))]
        self._slices = [_slices_of_class(data, c, found, settings, stage.seed) for c, found in enumerate(votes)]
        self._features: list[list[np.ndarray]] = []
        self._decoder: PixelDecoder | None = None
        self._number = 0

    @property
    def model(self) -> SaliencyModel:
        """The networks whose features the decoder reads."""
        return self._teacher.model

    def learn(self, student: StudentNetwork | None = None) -> PixelDecoder:
        """One more round: a new decoder with its prototypes and thresholds, from disk where an earlier call has finished it.

        The seeds of the first round are the pixels that classifier and diffusion maps agree on; those of every later one are what the
        diffusion map, the decoder of the round before and a student, if there is one, are sure of together.

        Raises:
            OSError: the disk is too full for the features.
            ValueError: a class has no seed of either kind.
            CheckpointError: a file is of another run.
        """
        names, settings, stage = self._data.class_names, self._settings, self._stage
        path = stage.folder / f"decoder_{self._number}.safetensors"
        check_run(path, stage.run_id)
        if path.exists():
            self._decoder = _read_round(path, len(names), settings, stage)
        else:
            seeded = self._seeded(student)
            _check_seeds(seeded, names)
            self._decoder = _train_round(seeded, names, settings, stage, self._number, path)
        self._number += 1
        return self._decoder

    def close(self) -> None:
        """Deletes the features."""
        self._features.clear()  # the maps into memory end before their files
        for cache in self._caches:
            cache.remove()

    def _seeded(self, student: StudentNetwork | None) -> list[SeededFeatures]:
        """Features and seeds of each class; the features are made in the first round that is not finished."""
        if not self._features:
            self._features = [self._fill(class_index) for class_index in range(len(self._caches))]
        return [
            SeededFeatures(blocks, _at_features(self._seeds(class_index, student), index, blocks))
            for class_index, (blocks, index) in enumerate(zip(self._features, self._slices, strict=True))
        ]

    def _fill(self, class_index: int) -> list[np.ndarray]:
        """Features of the slices of a class."""
        data, index = self._data, self._slices[class_index]
        title = f"features {data.class_names[class_index]}"
        with tqdm(total=len(index), desc=title, disable=not self._stage.progress, mininterval=5) as bar:
            inputs = inputs_of(data, index, class_index)
            return self._caches[class_index].fill(self.model, inputs, self._settings.features, _advance(bar))

    def _seeds(self, class_index: int, student: StudentNetwork | None) -> torch.Tensor:
        """`(M, H, W)` int8 seeds of the positive slices of a class."""
        teacher, settings = self._teacher, self._settings
        if self._decoder is None:
            return seeds_of_class(self._data, class_index, teacher.votes[class_index], teacher.saliency, settings.seeds)
        taught = teacher.taught(class_index, self._number, self._decoder, student)
        seeds = torch.full(taught.shape, IGNORED, dtype=torch.int8)
        seeds[taught >= 0.5 + settings.ignored_band] = FOREGROUND
        seeds[taught <= 0.5 - settings.ignored_band] = BACKGROUND
        seeds[taught.amax(dim=(1, 2)) < 0.5] = IGNORED  # such a slice contradicts its tag
        return seeds


def _new_decoder(num_classes: int, in_channels: Sequence[int], settings: CLDFSettings) -> PixelDecoder:
    return PixelDecoder(
        num_classes,
        in_channels,
        settings.features.to_dict(),
        settings.hidden_channels,
        settings.embedding_dim,
        settings.num_foreground,
        settings.num_background,
    )


def _train_round(
    seeded: Sequence[SeededFeatures], class_names: Sequence[str], settings: CLDFSettings, stage: Stage, number: int, path: Path
) -> PixelDecoder:
    """A new decoder, trained on seeds, with prototypes and thresholds; written to `path`."""
    torch.manual_seed(stage.seed + number)
    in_channels = [block.shape[1] for block in seeded[0].blocks]
    decoder = _new_decoder(len(seeded), in_channels, settings)
    task = DecoderTask(f"cldf_{number}", decoder, seeded, settings)
    loop = TrainingLoop(task, settings.optimizer, stage.folder, stage.run_id, stage.seed + number, stage.device, stage.watch)
    loop.run(stage.progress)
    fit_prototypes(decoder, seeded, stage.seed, class_names=class_names)
    progress = asdict(Progress(task.name, loop.step, 1.0, loop.loss_average))
    save_checkpoint(path, decoder.state_dict(), {"run_id": stage.run_id, "in_channels": in_channels, "progress": progress})
    return decoder.requires_grad_(False)


def _read_round(path: Path, num_classes: int, settings: CLDFSettings, stage: Stage) -> PixelDecoder:
    """The decoder that `_train_round` wrote; its progress is reported once more."""
    tensors, state = load_checkpoint(path)
    decoder = _new_decoder(num_classes, state["in_channels"], settings)
    decoder.load_state_dict(tensors)
    if stage.watch.report is not None:
        stage.watch.report(Progress(**state["progress"]))
    return decoder.to(stage.device).eval().requires_grad_(False)


def _check_seeds(seeded: Sequence[SeededFeatures], class_names: Sequence[str]) -> None:
    """Before a round, and at the resolution that it learns at."""
    for name, own in zip(class_names, seeded, strict=True):
        if not (own.seeds == FOREGROUND).any() or not (own.seeds == BACKGROUND).any():
            raise ValueError(f"class {name!r}: the maps agree on no pixel; tag more slices, or loosen SeedSettings")


def _slices_of_class(data: TaggedSlices, class_index: int, votes: Votes, settings: CLDFSettings, seed: int) -> torch.Tensor:
    """Slices whose features are kept: all positive ones, then some negative ones, drawn without replacement."""
    candidates = torch.nonzero(data.states[:, class_index] == ABSENT)[:, 0]
    count = round(len(votes.index) * settings.negatives_per_positive)
    chosen = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.cat([votes.index, candidates[chosen].sort().values])


def _at_features(seeds: torch.Tensor, index: torch.Tensor, blocks: Sequence[np.ndarray]) -> torch.Tensor:
    """Seeds at the resolution of the finest features; every pixel of the negative slices behind the positive ones is background."""
    negatives = torch.full((len(index) - len(seeds), *seeds.shape[1:]), BACKGROUND, dtype=torch.int8)
    return half_resolution(torch.cat([seeds, negatives]), (blocks[-1].shape[2], blocks[-1].shape[3]))


def find_votes(model: SaliencyModel, data: TaggedSlices, settings: SaliencySettings, stage: Stage) -> list[Votes]:
    """The maps of every slice tagged present, a class after the other, from disk as far as an earlier call came."""
    return [_votes_of_class(model, data, class_index, settings, stage) for class_index in range(len(data.class_names))]


def _votes_of_class(model: SaliencyModel, data: TaggedSlices, class_index: int, settings: SaliencySettings, stage: Stage) -> Votes:
    index = torch.nonzero(data.states[:, class_index] == PRESENT)[:, 0]

    def make(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        cam, gradient, levels = collect_votes(model, inputs_of(data, index[rows], class_index), settings)
        return {"cam": cam, "gradient": gradient, "levels": levels}

    blocks = torch.arange(len(index)).split(SLICES_PER_CALL)
    return Votes(index, **in_blocks(stage, f"votes_{class_index}", f"maps {data.class_names[class_index]}", blocks, make, stage.team))


def _advance(bar: tqdm[Any]) -> Callable[[int], None]:
    def advance(done: int) -> None:
        bar.update(done - bar.n)

    return advance


def _untrained(model: SaliencyModel, network: NetworkSettings) -> SaliencyModel:
    """The same architecture with random weights."""
    unet, embedding = build_unet(network), build_condition_embedding(network, model.num_classes)
    return SaliencyModel(
        unet.eval().to(model.device),
        embedding.eval().to(model.device),
        model.classifier,
        model.scheduler,
        model.patch_size,
        model.exclusive_classes,
    )
