"""The thread that scores images while nobody waits for it; what it has found so far is there at once."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from monailabel.interfaces.datastore import Datastore

from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.pipeline import CDMPipeline
from lib.activelearning.cache import DoubtCache
from lib.activelearning.doubt import Doubts, find_doubts
from lib.activelearning.sources import Source, find_source
from lib.models import ModelMissingError, ModelStore
from lib.tags.book import TagBook
from lib.turns import StoppedError, Turns

logger = logging.getLogger(__name__)

IDLE_S = 30.0
STOP_LIMIT_S = 10.0


@dataclass(frozen=True)
class Ranking:
    """What is known of the images so far.

    Attributes:
        doubts: image -> class -> doubt, by the model in service.
        unusable: images that cannot be scored.
    """

    doubts: Mapping[str, Doubts] = field(default_factory=dict)
    unusable: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Service:
    """A model in service, with what belongs to it."""

    pipeline: CDMPipeline
    classifier: NoiseConditionalClassifier
    cache: DoubtCache


class DoubtScorer:
    """Scores images that lack a tag, one at a time and by name, each as long as its files and the model stay the same.

    Half of the time it rests, and it never holds the network for more than one call of the classifier.

    Args:
        models: gives the model in service.
        datastore: where images are.
        tags: tells which images lack a tag.
        folder: where scores are kept.
    """

    def __init__(self, models: ModelStore, datastore: Datastore, tags: TagBook, folder: Path) -> None:
        self._models, self._datastore, self._tags, self._folder = models, datastore, tags, folder
        self._stop, self._wake = threading.Event(), threading.Event()
        self._turns = Turns(models.network_turn, rest_share=1.0, stop=self._stop)
        self._thread: threading.Thread | None = None
        self._service: _Service | None = None
        self._doubts: dict[str, Doubts] = {}
        self._unusable: dict[str, str] = {}
        self._said = ""

    def start(self) -> None:
        """Starts the thread, once; it ends with the process."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="DoubtScorer", daemon=True)
            self._thread.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """Ends the thread after the call of the classifier that it is in."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_LIMIT_S)

    def wake(self) -> None:
        """Makes the thread look for something to do."""
        self._wake.set()

    def ranking(self) -> Ranking:
        """What is known so far; nothing is computed."""
        return Ranking(self._doubts.copy(), frozenset(self._unusable.copy()))

    def sweep(self) -> None:
        """Scores every image that lacks a tag and a score; ends early when the model changes, or on `stop`."""
        service = self._model_in_service()
        if service is None:
            self._doubts = {}
            return
        wanted = sorted(self._tags.images.ids() - self._tags.complete())
        found = {image: find_source(self._datastore, image) for image in wanted}
        sources = {image: source for image, source in found.items() if source is not None}
        known = {image: service.cache.get((image, source.fingerprint)) for image, source in sources.items()}
        self._doubts = {image: doubts for image, doubts in known.items() if doubts is not None}
        self._unusable = {image: was for image, was in self._unusable.items() if image in sources and sources[image].fingerprint == was}
        for image, source in sources.items():
            if image in self._doubts or image in self._unusable:
                continue
            if self._model_in_service() is not service:
                self._wake.set()
                return
            self._score(service, image, source)

    def _model_in_service(self) -> _Service | None:
        try:
            pipeline = self._models.pipeline()
        except ModelMissingError:
            self._service = None
            return None
        if self._service is None or self._service.pipeline is not pipeline:
            cache = DoubtCache(self._folder, pipeline.model_version)
            self._unusable = {}
            self._service = _Service(pipeline, self._turns.wrap(pipeline.classifier), cache)
        return self._service

    def _score(self, service: _Service, image: str, source: Source) -> None:
        try:
            doubts = find_doubts(service.pipeline, service.classifier, source.read())
        except (StoppedError, torch.OutOfMemoryError):
            raise
        except FileNotFoundError:
            return  # removed meanwhile
        except Exception as error:  # whatever a damaged file makes its reader do: the next image must not suffer
            logger.warning("Image %s cannot be scored, and is offered last: %s: %s", image, type(error).__name__, error)
            self._unusable[image] = source.fingerprint
            return
        service.cache.put((image, source.fingerprint), doubts)
        self._doubts[image] = doubts

    def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self.sweep()
                self._said = ""
            except StoppedError:
                return
            except Exception as error:  # a PACS or a disk that is gone, memory: it may come back
                if str(error) != self._said:
                    logger.warning("Images cannot be scored, next try in %g s: %s: %s", IDLE_S, type(error).__name__, error)
                self._said = str(error)
            self._wake.wait(IDLE_S)
