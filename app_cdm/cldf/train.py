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
from app_cdm.saliency.base import SaliencyModel
from app_cdm.training.checkpoint import load_checkpoint, save_checkpoint
from app_cdm.training.loop import TrainingLoop
from app_cdm.training.stage import Stage
from app_cdm.training.teacher import decoder_probabilities, saliency_probabilities, teach


def train_decoder(
    model: SaliencyModel,
    data: TaggedSlices,
    votes: Sequence[Votes],
    saliency: SaliencySettings,
    settings: CLDFSettings,
    network: NetworkSettings,
    stage: Stage,
) -> PixelDecoder:
    """Trains the pixel decoder of a frozen diffusion model; no pixel label is read.

    Args:
        model: the networks of the diffusion model.
        data: the tagged slices.
        votes: of each class, see `find_votes`.
        saliency: as the votes were made.
        settings: seeds, features and loss.
        network: sizes of the U-Net, for the control with random features.
        stage: where and how to run.

    Returns:
        The decoder with its prototypes and thresholds.

    Raises:
        ValueError: a class has no seed of either kind.
        OSError: the disk is too full for the features.
    """
    torch.manual_seed(stage.seed)
    source = _untrained(model, network) if settings.random_features else model
    caches = [FeatureCache(stage.folder / f"features_{c}", settings.max_cache_gib) for c in range(len(data.class_names))]
    seeds = [seeds_of_class(data, class_index, found, saliency, settings.seeds) for class_index, found in enumerate(votes)]
    slices = [_slices_of_class(data, class_index, found, settings, stage.seed) for class_index, found in enumerate(votes)]
    features = []
    for class_index, (name, cache, index) in enumerate(zip(data.class_names, caches, slices, strict=True)):
        with tqdm(total=len(index), desc=f"features {name}", disable=not stage.progress, mininterval=5) as bar:
            features.append(cache.fill(source, inputs_of(data, index, class_index), settings.features, _advance(bar)))
    decoder: PixelDecoder | None = None
    for number in range(settings.num_rounds):
        if decoder is not None:
            seeds = [_agreed_seeds(source, decoder, data, c, found, saliency, settings) for c, found in enumerate(votes)]
        seeded = [
            SeededFeatures(blocks, _at_features(own, index, blocks)) for blocks, own, index in zip(features, seeds, slices, strict=True)
        ]
        _check_seeds(seeded, data.class_names)
        decoder = _train_round(seeded, data.class_names, settings, stage, number)
    assert decoder is not None  # num_rounds is at least one
    del seeded, features  # the maps into memory end before their files
    for cache in caches:
        cache.remove()
    return decoder


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


def _agreed_seeds(
    model: SaliencyModel,
    decoder: PixelDecoder,
    data: TaggedSlices,
    class_index: int,
    votes: Votes,
    saliency: SaliencySettings,
    settings: CLDFSettings,
) -> torch.Tensor:
    """`(M, H, W)` seeds of the positive slices where diffusion map and decoder agree."""
    by_diffusion = saliency_probabilities(data, votes, saliency, settings.seeds.slice_smoothing)
    taught = teach(data, votes.index, [by_diffusion, decoder_probabilities(model, decoder, data, votes.index, class_index)])
    seeds = torch.full(taught.shape, IGNORED, dtype=torch.int8)
    seeds[taught >= 0.5 + settings.ignored_band] = FOREGROUND
    seeds[taught <= 0.5 - settings.ignored_band] = BACKGROUND
    return seeds


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
        unet.eval().to(model.device), embedding.eval().to(model.device), model.classifier, model.scheduler, model.patch_size
    )
