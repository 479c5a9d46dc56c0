"""The CLDF stage: votes, seeds, cached features, decoder, prototypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from app_cdm.cldf.cache import FeatureCache, half_resolution
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
from app_cdm.training.checkpoint import load_checkpoint, save_checkpoint
from app_cdm.training.loop import TrainingLoop
from app_cdm.training.stage import Stage
from app_cdm.training.teacher import decoder_probabilities, saliency_probabilities, student_probabilities, teach


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

    Raises:
        OSError: the disk is too full for the features.
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
        self._data, self._votes, self._saliency, self._settings, self._stage = data, votes, saliency, settings, stage
        torch.manual_seed(stage.seed)
        self._model = _untrained(model, network) if settings.random_features else model
        self._caches = [FeatureCache(stage.folder / f"features_{c}", settings.max_cache_gib) for c in range(len(data.class_names))]
        self._slices = [_slices_of_class(data, c, found, settings, stage.seed) for c, found in enumerate(votes)]
        self._features = []
        for class_index, (name, cache, index) in enumerate(zip(data.class_names, self._caches, self._slices, strict=True)):
            with tqdm(total=len(index), desc=f"features {name}", disable=not stage.progress, mininterval=5) as bar:
                self._features.append(cache.fill(self._model, inputs_of(data, index, class_index), settings.features, _advance(bar)))
        self._decoder: PixelDecoder | None = None
        self._number = 0

    def learn(self, student: StudentNetwork | None = None) -> PixelDecoder:
        """One more round: a new decoder with its prototypes and thresholds.

        The seeds of the first round are the pixels that classifier and diffusion maps agree on; those of every later one are what the
        diffusion map, the decoder of the round before and a student, if there is one, are sure of together.

        Raises:
            ValueError: a class has no seed of either kind.
        """
        seeds = [self._seeds(class_index, found, student) for class_index, found in enumerate(self._votes)]
        seeded = [
            SeededFeatures(blocks, _at_features(own, index, blocks))
            for blocks, own, index in zip(self._features, seeds, self._slices, strict=True)
        ]
        _check_seeds(seeded, self._data.class_names)
        self._decoder = _train_round(seeded, self._data.class_names, self._settings, self._stage, self._number)
        self._number += 1
        return self._decoder

    def close(self) -> None:
        """Deletes the features."""
        self._features.clear()  # the maps into memory end before their files
        for cache in self._caches:
            cache.remove()

    def _seeds(self, class_index: int, votes: Votes, student: StudentNetwork | None) -> torch.Tensor:
        """`(M, H, W)` int8 seeds of the positive slices of a class."""
        data, settings = self._data, self._settings
        if self._decoder is None:
            return seeds_of_class(data, class_index, votes, self._saliency, settings.seeds)
        opinions = [
            saliency_probabilities(data, votes, self._saliency, settings.seeds.slice_smoothing),
            decoder_probabilities(self._model, self._decoder, data, votes.index, class_index),
            *([] if student is None else [student_probabilities(student, data, votes.index, class_index)]),
        ]
        taught = teach(data, votes.index, opinions)
        seeds = torch.full(taught.shape, IGNORED, dtype=torch.int8)
        seeds[taught >= 0.5 + settings.ignored_band] = FOREGROUND
        seeds[taught <= 0.5 - settings.ignored_band] = BACKGROUND
        return seeds


def _train_round(
    seeded: Sequence[SeededFeatures], class_names: Sequence[str], settings: CLDFSettings, stage: Stage, number: int
) -> PixelDecoder:
    """A new decoder, trained on seeds, with prototypes and thresholds."""
    torch.manual_seed(stage.seed + number)
    decoder = PixelDecoder(
        len(seeded),
        [block.shape[1] for block in seeded[0].blocks],
        settings.features.to_dict(),
        settings.hidden_channels,
        settings.embedding_dim,
        settings.num_foreground,
        settings.num_background,
    )
    task = DecoderTask(f"cldf_{number}", decoder, seeded, settings)
    TrainingLoop(task, settings.optimizer, stage.folder, stage.run_id, stage.seed + number, stage.device, stage.watch).run(stage.progress)
    fit_prototypes(decoder, seeded, stage.seed, class_names=class_names)
    return decoder.requires_grad_(False)


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
    stage.folder.mkdir(parents=True, exist_ok=True)
    paths = {s: stage.folder / f"votes_{class_index}_{s:06d}.safetensors" for s in range(0, len(index), SLICES_PER_CALL)}
    own, shows = list(paths)[stage.team.rank :: stage.team.size], stage.progress and stage.team.is_main
    for start in tqdm(own, desc=f"maps {data.class_names[class_index]}", disable=not shows, mininterval=5):
        if not paths[start].exists():
            inputs = inputs_of(data, index[start : start + SLICES_PER_CALL], class_index)
            cam, gradient, levels = collect_votes(model, inputs, settings)
            save_checkpoint(paths[start], {"cam": cam, "gradient": gradient, "levels": levels}, {"run_id": stage.run_id})
    stage.team.wait()
    parts = [load_checkpoint(path)[0] for path in paths.values()]
    return Votes(index, *(torch.cat([part[name] for part in parts]) for name in ("cam", "gradient", "levels")))


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
