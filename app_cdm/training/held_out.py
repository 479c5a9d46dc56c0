"""Patients that training does not see: who they are, what is lacking, and how good a model is on their tags."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from app_cdm.config import PreprocessSettings
from app_cdm.data.dataset import TaggedSlices, load_tagged_slices
from app_cdm.data.tags import PRESENT, UNKNOWN, TagTable
from app_cdm.metrics.ranking import tag_auc
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.pipeline import CDMPipeline
from app_cdm.segmentation.gate import joint_logits, map_logits, slice_logits, slice_scores
from app_cdm.training.teacher import student_probabilities

MIN_PATIENTS = 4
MIN_HELD_OUT_PATIENTS = 2


class TooFewTagsError(ValueError):
    """There is too little to learn from; the message says per class how many more of what."""


def split_patients(tags: TagTable, share: float) -> tuple[TagTable, TagTable]:
    """Tags to learn from, and tags of held-out patients to judge by.

    A patient's place follows from the hash of the patient's id, so whoever is held out among many stays so when others are added.
    Every class is present in both parts.

    Args:
        tags: all tags.
        share: of the patients to hold out.

    Raises:
        TooFewTagsError: fewer than four patients are tagged, or a class is not both present and absent among them.
    """
    patients = sorted(set(tags.patients.values()), key=_rank)
    lacking = missing_tags(tags)
    if lacking:
        raise TooFewTagsError("too few tags to learn from: " + "; ".join(lacking))
    held_out = {patient for patient in patients if _rank(patient) < share} | set(patients[:MIN_HELD_OUT_PATIENTS])
    for name in tags.class_names:
        holding = sorted({tags.patients[image] for image, by_class in tags.tags.items() if by_class.get(name)}, key=_rank)
        if holding and not held_out & set(holding):
            held_out.add(holding[0])
        if holding and set(holding) <= held_out:
            held_out.discard(holding[-1])
    judged = [image for image in tags.tags if tags.patients[image] in held_out]
    return tags.subset([image for image in tags.tags if image not in judged]), tags.subset(judged)


def _rank(patient: str) -> float:
    """A number in [0, 1) that looks random and never changes."""
    return int(hashlib.sha256(patient.encode()).hexdigest()[:12], 16) / 16**12


def missing_tags(tags: TagTable) -> list[str]:
    """What must be tagged before training can start; empty when there is enough."""
    lacking = []
    patients = set(tags.patients.values())
    if len(patients) < MIN_PATIENTS:
        lacking.append(f"tag images of {MIN_PATIENTS - len(patients)} more patient(s)")
    for name in tags.class_names:
        present = {tags.patients[image] for image, by_class in tags.tags.items() if by_class.get(name)}
        # An image with slice ranges has absent slices too; one that is present somewhere says nothing of any slice.
        absent = {tags.patients[image] for image, by_class in tags.tags.items() if by_class.get(name, True) not in (True, None)}
        for state, found in (("present", present), ("absent, or present on a slice range", absent)):
            if len(found) < 2:
                lacking.append(f"class {name!r}: {2 - len(found)} more patient(s) tagged {state}")
    return lacking


def load_held_out(paths: Mapping[str, Path], tags: TagTable, preprocess: PreprocessSettings) -> TaggedSlices:
    """Slices of held-out images."""
    return load_tagged_slices({image: paths[image] for image in tags.tags}, tags, preprocess)


def gate_criterion(data: TaggedSlices) -> Callable[[nn.Module], float]:
    """Tag AUC of a classifier on held-out slices, a mean over classes; where a class lacks one state, minus its cross-entropy counts.

    Args:
        data: held-out slices.

    Returns:
        What `Monitor.criterion` asks for.
    """

    def criterion(module: nn.Module) -> float:
        assert isinstance(module, NoiseConditionalClassifier)
        logits = slice_logits(module, data.slices)
        return float(np.mean([_auc_or_loss(logits[:, c], data.states[:, c]) for c in range(len(data.class_names))]))

    return criterion


def _auc_or_loss(logits: torch.Tensor, states: torch.Tensor) -> float:
    known = states != UNKNOWN
    if not known.any():
        return 0.5
    target = states[known] == PRESENT
    if target.all() or not target.any():
        return 0.5 - float(F.binary_cross_entropy_with_logits(logits[known], target.float()))
    return tag_auc(logits[known].tolist(), target.tolist())


def held_out_scores(pipeline: CDMPipeline, data: TaggedSlices, exclusive_classes: bool | None = None) -> dict[str, float]:
    """How well a model tells held-out slices apart, class by class and as a mean.

    `gate/<class>` is that of the gate as it works: of classifier and student together, smoothed along the volume in millimetres. With a
    student, `map/<class>` is that of its map alone, see `map_logits`; of classes that exclude each other on slices with this one or none.

    Args:
        pipeline: the model.
        data: held-out slices.
        exclusive_classes: how maps are judged, which must be the same for models that are compared; as the model takes them where None.

    Returns:
        `gate/<class>`, `map/<class>` and `mean`; classes without both states are left out, and `mean` is NaN where all are.
    """
    of_classifier = slice_logits(pipeline.classifier, data.slices).numpy()
    of_maps, every = None, torch.arange(len(data.slices))
    if pipeline.student is not None:
        maps = [student_probabilities(pipeline.student, data, every, index).numpy() for index in range(len(data.class_names))]
        of_maps = np.stack([map_logits(one) for one in maps], axis=1)
    beside_empty = pipeline.description.exclusive_classes if exclusive_classes is None else exclusive_classes
    judged = {"gate": (_gate_scores(pipeline, data, of_classifier, of_maps), data.states)}
    if of_maps is not None:
        judged["map"] = (of_maps, (data.beside_empty_slices() if beside_empty else data).states)
    scores: dict[str, float] = {}
    for class_index, name in enumerate(data.class_names):
        for kind, (values, states) in judged.items():
            known = (states[:, class_index] != UNKNOWN).numpy()
            is_present = (states[known, class_index] == PRESENT).tolist()
            if len(set(is_present)) > 1:
                scores[f"{kind}/{name}"] = tag_auc(values[known, class_index].tolist(), is_present)
    scores["mean"] = float(np.mean(list(scores.values()))) if scores else float("nan")
    return scores


def _gate_scores(pipeline: CDMPipeline, data: TaggedSlices, of_classifier: np.ndarray, of_maps: np.ndarray | None) -> np.ndarray:
    """`(S, C)` scores of all volumes, one after the other."""
    smoothing = pipeline.settings_for("cdm_saliency").mask.gate_smoothing_mm
    parts = []
    for volume in range(len(data.image_ids)):
        rows = data.volume_index.numpy() == volume
        gap = data.spacing_mm[volume] if data.spacing_mm else 1.0
        logits = of_classifier[rows]
        if of_maps is not None:
            logits = joint_logits(of_maps[rows], partial(np.take, logits, axis=0), gap, pipeline.description.exclusive_classes)
        parts.append(np.stack([slice_scores(column, gap, smoothing) for column in logits.T], axis=1))
    return np.concatenate(parts)
