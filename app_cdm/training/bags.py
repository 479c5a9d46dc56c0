"""Volumes that hold a class somewhere: multiple-instance learning, and slice tags from what was learned."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from app_cdm.data.augmentation import AugmentationSettings, augment
from app_cdm.data.dataset import TaggedSlices
from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.segmentation.gate import slice_logits

SLICES_PER_BAG = 16
SURE = 0.9


def bag_loss(
    classifier: NoiseConditionalClassifier,
    data: TaggedSlices,
    augmentation: AugmentationSettings,
    sharpness: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Cross-entropy of one bag, drawn by lot: some slice of the volume must hold the class.

    The bag's log-odds are log(mean(exp(r a))) / r over at most 16 of its slices, evenly spread with a random start, as in the
    classifier's own pooling over places (multiple-instance learning; Pinheiro & Collobert 2015, equation 6).

    Args:
        classifier: in training.
        data: with at least one bag.
        augmentation: of the slices.
        sharpness: r.
        generator: source of randomness.

    Returns:
        Scalar.
    """
    volume, class_index = data.bags[int(torch.randint(len(data.bags), (1,), generator=generator))].tolist()
    inside = torch.nonzero(data.volume_index == volume)[:, 0]
    step = max(1, -(-len(inside) // SLICES_PER_BAG))
    chosen = inside[int(torch.randint(step, (1,), generator=generator)) :: step]
    slices = augment(data.slices[chosen], augmentation, generator).to(classifier.device)
    clean = torch.zeros(len(slices), dtype=torch.long, device=slices.device)
    logits = classifier(slices, clean, classifier.draw_dropout(len(slices), generator))[:, class_index]
    count = torch.log(torch.tensor(float(len(slices))))
    pooled = (torch.logsumexp(sharpness * logits, dim=0) - count) / sharpness
    return F.softplus(-pooled)


def settle_bags(data: TaggedSlices, classifier: NoiseConditionalClassifier) -> TaggedSlices:
    """Tags of the slices in bags, as far as a trained classifier is sure: what comes after it needs tags of slices.

    The likeliest slice of a bag is present, as is every one with a probability of at least 0.9; those of at most 0.1 are absent, the rest
    stays unknown.

    Args:
        data: tagged slices; returned as they are where there is no bag.
        classifier: trained.
    """
    if not len(data.bags):
        return data
    states, is_training = data.states.clone(), classifier.training
    classifier.eval()
    for volume, class_index in data.bags.tolist():
        inside = torch.nonzero(data.volume_index == volume)[:, 0]
        scores = torch.sigmoid(slice_logits(classifier, data.slices[inside])[:, class_index])
        settled = torch.full_like(states[inside, class_index], UNKNOWN)
        settled[scores >= SURE] = PRESENT
        settled[scores <= 1 - SURE] = ABSENT
        settled[int(scores.argmax())] = PRESENT
        states[inside, class_index] = settled
    classifier.train(is_training)
    return replace(data, states=states, bags=data.bags[:0])
