"""The pixel decoder's loss, and its prototypes once it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2

from app_cdm.cldf.contrast import draw_pixels, pixel_info_nce, prototype_loss, update_prototypes
from app_cdm.cldf.seeds import BACKGROUND, FOREGROUND
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.training.loop import TrainingTask

MAX_FITTED_PIXELS = 20_000
CANDIDATE_THRESHOLDS = 401


@dataclass(frozen=True)
class SeededFeatures:
    """Cached features of one class's slices, and their seeds.

    Attributes:
        blocks: one `(M, v * c, h, w)` array a block, coarsest first; may be memory-mapped.
        seeds: `(M, h, w)` int8 at the resolution of the finest block.
    """

    blocks: Sequence[np.ndarray]
    seeds: torch.Tensor

    def select(self, index: torch.Tensor) -> list[torch.Tensor]:
        """Features of some slices, float32."""
        return [torch.from_numpy(np.asarray(block[index.numpy()])).float() for block in self.blocks]


class DecoderTask(TrainingTask):
    """Supervised pixel InfoNCE and pixel-to-prototype loss on seed pixels; half of a batch's slices hold the class."""

    def __init__(self, name: str, decoder: PixelDecoder, classes: Sequence[SeededFeatures], settings: CLDFSettings) -> None:
        self.name = name
        self.module: PixelDecoder = decoder
        self.classes, self.settings = classes, settings

    def loss(self, generator: torch.Generator, batch_size: int) -> torch.Tensor:
        class_index = int(torch.randint(len(self.classes), (1,), generator=generator))
        data, settings, decoder = self.classes[class_index], self.settings, self.module
        holds = (data.seeds == FOREGROUND).flatten(1).any(dim=1)
        index = torch.cat(
            [
                _draw(torch.nonzero(holds)[:, 0], batch_size // 2, generator),
                _draw(torch.nonzero(~holds)[:, 0], batch_size - batch_size // 2, generator),
            ]
        )
        features, seeds = data.select(index), data.seeds[index]
        if torch.rand(1, generator=generator) < 0.5:
            features, seeds = [block.flip(-1) for block in features], seeds.flip(-1)
        device = decoder.conv_out.weight.device
        embedding = decoder([block.to(device) for block in features])
        with torch.no_grad():
            margin = decoder.margin(embedding, class_index)
        pixels = embedding.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = draw_pixels(seeds, margin, settings.num_anchors, settings.hard_share, generator)
        foreground, background = (pixels[part.to(device)] for part in chosen)
        own, other = decoder.foreground[class_index].clone(), decoder.background[class_index].clone()
        to_prototypes = prototype_loss(foreground, own, other, settings.temperature) + prototype_loss(
            background, other, own, settings.temperature
        )
        update_prototypes(decoder.foreground[class_index], foreground.detach(), settings.prototype_decay)
        update_prototypes(decoder.background[class_index], background.detach(), settings.prototype_decay)
        contrast = pixel_info_nce(foreground, background, settings.temperature)
        return contrast + settings.prototype_weight * to_prototypes


def _draw(candidates: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return candidates[torch.randint(len(candidates), (count,), generator=generator)] if len(candidates) else candidates


@torch.no_grad()
def fit_prototypes(
    decoder: PixelDecoder, classes: Sequence[SeededFeatures], seed: int, batch_size: int = 32, class_names: Sequence[str] = ()
) -> None:
    """Sets prototypes, threshold and spread of a trained decoder from its training seeds, in place.

    Prototypes are the k-means centres of the seeds' embeddings. The threshold is the margin that tells foreground from background
    seeds best with both kinds weighted alike (Youden's J); the spread scales the margin so that a sigmoid fits the seeds.

    Args:
        decoder: trained.
        classes: cached features and seeds of each class.
        seed: of the pixels drawn and of k-means.
        batch_size: slices in one call.
        class_names: for the error; numbers where not given.

    Raises:
        ValueError: a class has fewer seeds than prototypes.
    """
    device = decoder.conv_out.weight.device
    for class_index, data in enumerate(classes):
        generator = torch.Generator().manual_seed(seed)
        found: dict[int, list[torch.Tensor]] = {FOREGROUND: [], BACKGROUND: []}
        for index in torch.arange(len(data.seeds)).split(batch_size):
            embedding = decoder([block.to(device) for block in data.select(index)]).cpu().permute(0, 2, 3, 1).flatten(0, 2)
            for value, parts in found.items():
                inside = torch.nonzero(data.seeds[index].flatten() == value)[:, 0]
                share = MAX_FITTED_PIXELS * len(index) // len(data.seeds) + 1
                parts.append(embedding[inside[torch.randperm(len(inside), generator=generator)[:share]]])
        foreground, background = (torch.cat(found[value]) for value in (FOREGROUND, BACKGROUND))
        fewest = max(decoder.foreground.shape[1], decoder.background.shape[1])
        if min(len(foreground), len(background)) < fewest:
            name = repr(class_names[class_index]) if class_names else str(class_index)
            raise ValueError(
                f"class {name}: {len(foreground)} foreground and {len(background)} background seeds are too few; tag more slices"
            )
        for prototypes, embeddings in ((decoder.foreground, foreground), (decoder.background, background)):
            centres, _ = kmeans2(embeddings.double().numpy(), prototypes.shape[1], minit="++", seed=seed)
            prototypes[class_index] = F.normalize(torch.from_numpy(centres).float(), dim=1).to(device)
        margins = [decoder.margin(part.T[None, :, :, None].to(device), class_index).flatten().cpu() for part in (foreground, background)]
        threshold, spread = _fit_threshold(*margins)
        decoder.threshold[class_index], decoder.spread[class_index] = threshold, spread


def _fit_threshold(foreground: torch.Tensor, background: torch.Tensor) -> tuple[float, float]:
    """Threshold of the margin by Youden's J, and an eighth of the distance between the two kinds' medians."""
    candidates = torch.linspace(-2, 2, CANDIDATE_THRESHOLDS)
    hit = torch.stack([(foreground >= c).float().mean() for c in candidates])
    false_alarm = torch.stack([(background >= c).float().mean() for c in candidates])
    gain = hit - false_alarm
    best = candidates[gain >= gain.max() - 1e-6]
    spread = max(float(foreground.median() - background.median()) / 8, 1e-3)
    return float(best[len(best) // 2]), spread
