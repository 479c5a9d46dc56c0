"""The scoring method `weak_label`: the model in service against held-out tags, and against final labels where there are some."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from app_cdm.data.dataset import TaggedSlices
from app_cdm.data.tags import TagError, TagTable
from app_cdm.data.volume import VolumeError
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.held_out import held_out_scores, load_held_out, split_patients
from app_cdm.training.retrain import RetrainSettings
from lib.index import enough_space
from lib.models import ModelStore
from lib.scoring.final_labels import score_final_labels
from lib.server.errors import explain
from lib.tags.book import TagBook
from lib.turns import Turns

logger = logging.getLogger(__name__)

NAME = "weak_label"
DESCRIPTION = "Tag AUC on held-out patients, and Dice against final labels where there are some; nothing is learned from them"
UNUSABLE = (VolumeError, TagError, LookupError, OSError)
Say = Callable[[str], None]


class WeakLabelScore(ScoringMethod):  # type: ignore[misc]  # monailabel ships no types
    """Scores the model in service.

    Args:
        models: gives it.
        tags: the stored tags; who is held out of them follows from the patients, as in training.
    """

    def __init__(self, models: ModelStore, tags: TagBook) -> None:
        super().__init__(DESCRIPTION)
        self._models, self._tags = models, tags

    def check(self) -> None:
        """Requires what scoring needs.

        Raises:
            ModelMissingError: there is no model.
            TooFewTagsError: nobody can be held out; says what is missing.
        """
        self._models.pipeline()
        self._held_out()

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """The same as `score`, as the host calls it."""
        return self.score(datastore, threading.Event(), logger.info)

    def score(self, datastore: Datastore, stop: threading.Event, say: Say) -> dict[str, Any]:
        """Scores the model.

        Args:
            datastore: images and final labels.
            stop: ends the work, with `StoppedError`.
            say: told what was found.

        Returns:
            `model_version`; `held_out` with `scores`, see `held_out_scores`; `final_labels`, see `score_final_labels`.

        Raises:
            ModelMissingError, TooFewTagsError: see `check`.
            StoppedError: it was stopped.
        """
        pipeline, tags = self._models.pipeline(), self._held_out()
        turns = Turns(self._models.network_turn, stop=stop)
        result = {"model_version": pipeline.model_version, "held_out": self._score_tags(pipeline, tags, datastore, turns, say)}
        result["final_labels"] = score_final_labels(pipeline, datastore, self._tags.class_names(), set(tags.tags), turns, say)
        return result

    def _held_out(self) -> TagTable:
        return split_patients(self._tags.table(), RetrainSettings().held_out_share)[1]

    def _score_tags(self, pipeline: CDMPipeline, tags: TagTable, datastore: Datastore, turns: Turns, say: Say) -> dict[str, Any]:
        data, unusable = load_usable(datastore, replace(tags, class_names=pipeline.class_names), pipeline)
        if data is None:
            scores = {}
        else:
            student = None if pipeline.student is None else turns.wrap(pipeline.student)
            scores = held_out_scores(pipeline.with_networks(classifier=turns.wrap(pipeline.classifier), student=student), data)
        say(f"held-out tags: {', '.join(f'{name} {value:.3f}' for name, value in scores.items()) or 'no image can be used'}")
        return {
            "scores": scores,
            "patients": len(set(tags.patients.values())),
            "images": len(tags.tags) - len(unusable),
            "slices": 0 if data is None else len(data.slices),
            "unusable": unusable,
        }


def load_usable(datastore: Datastore, tags: TagTable, pipeline: CDMPipeline) -> tuple[TaggedSlices | None, dict[str, str]]:
    """Slices of the images that can be used, and by image what is wrong with the others; None where no image can be."""
    paths: dict[str, Path] = {}
    unusable: dict[str, str] = {}
    preprocess = pipeline.description.preprocess
    for image in tags.tags:
        try:
            with enough_space():
                paths[image] = Path(datastore.get_image_uri(image))
        except UNUSABLE as error:
            unusable[image] = explain(error)
    try:
        if paths:
            return load_held_out(paths, tags.subset(paths), preprocess), unusable
    except UNUSABLE:
        logger.info("An image of a held-out patient cannot be used: looking which")
    for image, path in paths.items():
        try:
            load_held_out({image: path}, tags.subset([image]), preprocess)
        except UNUSABLE as error:
            unusable[image] = explain(error)
    usable = [image for image in paths if image not in unusable]
    return (load_held_out(paths, tags.subset(usable), preprocess) if usable else None), unusable
