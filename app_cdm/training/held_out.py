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
from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN, TagTable
from app_cdm.metrics.ranking import tag_auc
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.pipeline import CDMPipeline
from app_cdm.segmentation.gate import joint_logits, map_logits, slice_logits, slice_scores
from app_cdm.training.teacher import student_probabilities

MIN_PATIENTS = 4
MIN_HELD_OUT_PATIENTS = 2
MAX_TRIES = 200
MEAN = "mean"
HARDLY_APART_AUC = 0.75  # half-way from chance to perfect


class TooFewTagsError(ValueError):
    """There is too little to learn from; the message says per class how many more of what."""


def split_patients(tags: TagTable, share: float) -> tuple[TagTable, TagTable]:
    """Tags to learn from, and tags of held-out patients to judge by.

    A patient's place follows from the hash of the patient's id, so whoever is held out among many stays so when others are added.
    In both parts every class is present, and absent on some slices.

    Args:
        tags: all tags.
        share: of the patients to hold out.

    Raises:
        TooFewTagsError: fewer than four patients are tagged, or no two groups of them hold every class present and absent.
    """
    lacking = missing_tags(tags)
    if lacking:
        raise TooFewTagsError("too few tags to learn from: " + "; ".join(lacking))
    held_out = _held_out_patients(tags, share)
    judged = [image for image in tags.tags if tags.patients[image] in held_out]
    return tags.subset([image for image in tags.tags if tags.patients[image] not in held_out]), tags.subset(judged)


def _held_out_patients(tags: TagTable, share: float) -> set[str]:
    """By their hash; while a part lacks a state of a class, the patient changes sides after whom the fewest are lacking."""
    patients = sorted(set(tags.patients.values()), key=_rank)
    groups = [tags.patients_with(name, state) for name in tags.class_names for state in (PRESENT, ABSENT)]

    def unmet(held_out: set[str]) -> list[set[str]]:
        return [group for group in groups if not group & held_out or group <= held_out]

    held_out = {patient for patient in patients if _rank(patient) < share} | set(patients[:MIN_HELD_OUT_PATIENTS])
    tried = [held_out]
    while found := unmet(held_out):
        concerned = sorted(set.union(*found), key=_rank)
        others = [other for other in (held_out ^ {patient} for patient in concerned) if other not in tried]
        if not others or len(tried) > MAX_TRIES:
            raise TooFewTagsError(
                "too few tags to learn from: whoever is held out, a class is not both present and absent there and among the other "
                "patients; tag more patients, with every class"
            )
        held_out = min(others, key=lambda other: len(unmet(other)))
        tried.append(held_out)
    return held_out


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
        for state, said in ((PRESENT, "present"), (ABSENT, "absent, or present on a slice range")):
            found = len(tags.patients_with(name, state))
            if found < MIN_HELD_OUT_PATIENTS:
                lacking.append(f"class {name!r}: {MIN_HELD_OUT_PATIENTS - found} more patient(s) tagged {said}")
    return lacking


def load_held_out(paths: Mapping[str, Path], tags: TagTable, preprocess: PreprocessSettings) -> TaggedSlices:
    """Slices of held-out images."""
    return load_tagged_slices({image: paths[image] for image in tags.tags}, tags, preprocess)


def gate_criterion(data: TaggedSlices) -> Callable[[nn.Module], float]:
    """Tag AUC of a classifier on held-out slices, a mean over classes; where a class lacks one state, minus its cross-entropy counts.

    Args:
        data: held-out slices; see `_judged` for volumes that hold a class somewhere.

    Returns:
        What `Monitor.criterion` asks for.
    """

    def criterion(module: nn.Module) -> float:
        assert isinstance(module, NoiseConditionalClassifier)
        logits = slice_logits(module, data.slices).numpy()
        return float(np.mean([_auc_or_loss(*_judged(logits[:, c], data, c)) for c in range(len(data.class_names))]))

    return criterion


def _judged(scores: np.ndarray, data: TaggedSlices, class_index: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of what is known of a class, and whether it is present there.

    That is every slice with a tag, and of a volume that holds the class somewhere the highest score.
    """
    states = data.states[:, class_index].numpy()
    known = states != UNKNOWN
    bags = data.bags[data.bags[:, 1] == class_index, 0].tolist()
    highest = [scores[data.volume_index.numpy() == volume].max() for volume in bags]
    return np.append(scores[known], highest), np.append(states[known] == PRESENT, np.ones(len(bags), bool)).astype(bool)


def _auc_or_loss(logits: np.ndarray, is_present: np.ndarray) -> float:
    if not len(logits):
        return 0.5
    if is_present.all() or not is_present.any():
        target = torch.from_numpy(is_present.astype(np.float32))
        return 0.5 - float(F.binary_cross_entropy_with_logits(torch.from_numpy(logits).float(), target))
    return tag_auc(logits.tolist(), is_present.tolist())


def held_out_scores(pipeline: CDMPipeline, data: TaggedSlices, exclusive_classes: bool | None = None) -> dict[str, float]:
    """How well a model tells held-out slices apart, class by class and as a mean.

    `gate/<class>` is that of the gate as it works: of classifier and student together, smoothed along the volume in millimetres. With a
    student, `map/<class>` is that of its map alone, see `map_logits`; of classes that exclude each other on slices with this one or none.
    A volume that holds a class somewhere counts as one slice, that with the highest score.

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
    found = {"gate": (_gate_scores(pipeline, data, of_classifier, of_maps), data)}
    if of_maps is not None:
        found["map"] = (of_maps, data.beside_empty_slices() if beside_empty else data)
    scores: dict[str, float] = {}
    for class_index, name in enumerate(data.class_names):
        for kind, (values, judged_on) in found.items():
            judged, is_present = _judged(values[:, class_index], judged_on, class_index)
            if is_present.any() and not is_present.all():
                scores[f"{kind}/{name}"] = tag_auc(judged.tolist(), is_present.tolist())
    return with_mean(scores)


def with_mean(scores: Mapping[str, float]) -> dict[str, float]:
    """The same with their `mean`; NaN where there are none."""
    own = {name: value for name, value in scores.items() if name != MEAN}
    return {**own, MEAN: float(np.mean(list(own.values()))) if own else float("nan")}


def hardly_told_apart(scores: Mapping[str, float]) -> dict[str, float]:
    """Classes of which a model hardly knows on which held-out slices they are, and the lower AUC of their gate and map.

    Such a model has learned something else than the class, or nothing, and its masks may lie anywhere. The reverse does not hold: what
    always comes with a class tells slices apart as well as the class itself.

    Args:
        scores: of `held_out_scores`.
    """
    lowest: dict[str, float] = {}
    for key, auc in scores.items():
        _, is_of_class, name = key.partition("/")
        if is_of_class:
            lowest[name] = min(auc, lowest.get(name, 1.0))
    return {name: auc for name, auc in lowest.items() if auc < HARDLY_APART_AUC}


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
