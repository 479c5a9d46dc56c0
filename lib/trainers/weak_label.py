"""The `weak_label` trainer: from the stored tags to a published model; it is given images and tags, and nothing else."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks as host_tasks

from app_cdm.config import SettingsError
from app_cdm.data.tags import TagTable
from app_cdm.data.volume import VolumeError
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.held_out import TooFewTagsError, hardly_told_apart, missing_tags
from app_cdm.training.retrain import Candidate, RetrainSettings, retrain
from app_cdm.training.settings import TrainSettings
from app_cdm.training.stage import FIRST_STAGES
from lib.busy import BusyError
from lib.models import class_names_of, model_folder
from lib.options import AppOptions
from lib.server.errors import explain
from lib.tags.book import TagBook
from lib.trainers.request import TrainRequest, option_table, read_train_request
from lib.trainers.status import PERCENT, StatusWriter, TrainStatus, read_status
from lib.versions import ModelVersions

logger = logging.getLogger(__name__)

NAME = "weak_label"
DESCRIPTION = "Learns from image-level tags alone; the masks get better without a contour. Research use only, not a medical device"
FOLDER = ".training"
UNNAMED = "trained"
MAX_RUNS = 2


class WeakLabel(TrainTask):  # type: ignore[misc]  # monailabel ships no types
    """Trains on the stored tags, judges on held-out patients and publishes what is not worse.

    Args:
        options: where models lie.
        tags: all that is learned from.
        find_image: gives the file of an image; the datastore's labels are out of reach.
    """

    def __init__(self, options: AppOptions, tags: TagBook, find_image: Callable[[str], str]) -> None:
        super().__init__(DESCRIPTION)
        self._options, self._tags, self._find_image = options, tags, find_image

    def config(self) -> dict[str, Any]:
        """The option table."""
        return option_table(torch.cuda.is_available())

    @property
    def folder(self) -> Path:
        """Where checkpoints and the status are kept."""
        return self._options.model_dir / FOLDER / self.versions.name

    @property
    def versions(self) -> ModelVersions:
        """Versions of the model that is trained: the one in service, or a new one."""
        return served_versions(self._options)

    def status(self) -> TrainStatus | None:
        """Where the last training is or how it ended; None while there was none."""
        return read_status(self.folder / "status.json")

    def stats(self) -> dict[str, Any]:
        """What the viewers' progress bars read: `epoch` of `total_epochs` in percent of the budget, and the held-out score."""
        status = self.status()
        if status is None:
            return {}
        score = status.held_out.get("mean", status.held_out_before.get("mean", 0.0))
        is_stopped = status.state == "running" and not is_training()
        return {
            "epoch": int(status.percent),
            "total_epochs": PERCENT,
            "best_metric": score if math.isfinite(score) else 0.0,
            "state": "stopped" if is_stopped else status.state,
            "stage": status.stage,
            "loss": status.loss,
            "message": "stopped; Train resumes it, with the same tags and options" if is_stopped else status.message,
            "version": status.version,
            "held_out": status.held_out,
            "held_out_before": status.held_out_before,
            "left_out": status.left_out,
            "start_ts": int(status.started),
        }

    def check(self, request: dict[str, Any]) -> TrainRequest:
        """Reads a request without running it.

        Raises:
            SettingsError: an option is not allowed, or does not go with the model in service and the classes.
            BusyError: a training is running.
            TooFewTagsError: there is too little to learn from; says what is missing.
        """
        wanted = read_train_request(request)
        if is_training():
            raise BusyError(f"a training is running ({self._where()}): wait for it, or stop it first")
        table = self._tags.table()
        self._check_start(wanted.settings, table.class_names)
        lacking = missing_tags(table)
        if lacking:
            raise TooFewTagsError("too few tags to learn from: " + "; ".join(lacking))
        return wanted

    def _check_start(self, settings: RetrainSettings, tagged: tuple[str, ...]) -> None:
        """Refuses what would end after the images were read."""
        folder = model_folder(self._options)
        in_use = folder if settings.start == "published" else None
        if in_use is None and not set(FIRST_STAGES) <= set(settings.stages):
            lack = "there is no model" if folder is None else f"start = {settings.start!r} leaves the model in service out"
            raise SettingsError(f"stages {list(settings.stages)} build on a trained model, and {lack}: choose the stages all")
        if in_use is None:
            return
        known = class_names_of(in_use)
        if known and known != tagged:
            raise SettingsError(
                f"the model in service knows the classes {', '.join(known)}, and tags are for {', '.join(tagged)}: a new model is needed, "
                "choose start = scratch"
            )

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Trains; called in a process of its own, which may be killed at any moment.

        Raises:
            BusyError: another process trains the same model.
            TooFewTagsError, SettingsError, VolumeError: see `retrain`.
            requests.RequestException: the DICOMweb server does not answer.
        """
        wanted = read_train_request(request)
        settings = TrainSettings(seed=wanted.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            writer = StatusWriter(self.folder / "status.json")
            try:
                return self._train(wanted, settings, writer)
            except Exception as error:
                writer.end("failed", _reason(error))
                raise

    def _train(self, wanted: TrainRequest, settings: TrainSettings, writer: StatusWriter) -> dict[str, Any]:
        versions, in_use = self.versions, model_folder(self._options)
        paths, tags = self._learned_from(writer)
        base = CDMPipeline.from_pretrained(in_use).model_version if in_use is not None and wanted.settings.start == "published" else ""
        identity = json.dumps(
            [tags.digest(), sorted(tags.patients.items()), wanted.settings.to_dict(), settings.to_dict(), base], sort_keys=True
        )
        run_folder = self.folder / f"run_{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        if not run_folder.exists() and any(self.folder.glob("run_*")):
            logger.info("Tags or options are others than those of the last training that did not end: this one starts from its beginning")
        self._forget_old_runs(run_folder)
        device = "cpu" if wanted.device == "cpu" or not torch.cuda.is_available() else "cuda"
        candidate = retrain(paths, tags, wanted.settings, settings, run_folder, in_use, device, writer.report)
        scores = (candidate.scores, candidate.scores_in_use or {})
        if candidate.is_worse and not wanted.force:
            message = f"not published: {_compared(candidate)}; tag more, train longer, or send force=true"
            writer.end("kept back", message, scores=scores)
        else:
            version = versions.publish(candidate.folder, CDMPipeline.from_pretrained(candidate.folder).model_version)
            writer.end("published", f"version {version} is in service: {_compared(candidate)}{_doubts(candidate)}", version, scores)
            for logs in run_folder.rglob("tensorboard"):
                shutil.copytree(logs, self.folder / "tensorboard" / version, dirs_exist_ok=True)
            shutil.rmtree(run_folder, ignore_errors=True)
        logger.info("%s", writer.status.message)
        return self.stats()

    def _learned_from(self, writer: StatusWriter) -> tuple[dict[str, Path], TagTable]:
        """Files of the tagged images, and their tags: read when the files are there, as a series that grew has lost its own by then.

        Series of which no image can be made are left out: absent or present somewhere can be said of a series that nobody has opened yet.

        Raises:
            TooFewTagsError: without them there is too little to learn from.
            requests.RequestException: the DICOMweb server does not answer; which series are readable is not known.
        """
        paths, left_out = dict[str, Path](), dict[str, str]()
        for image in self._tags.table().tags:
            try:
                paths[image] = Path(self._find_image(image))
            except VolumeError as error:
                logger.warning("Image %s is not learned from: %s", image, error)
                left_out[image] = str(error)
        tags = self._tags.table()
        tags = tags.subset([image for image in tags.tags if image in paths])
        if left_out:
            writer.leave_out(left_out)
            if lacking := missing_tags(tags):
                raise TooFewTagsError("too few tags to learn from: " + "; ".join(lacking))
        return paths, tags

    def _where(self) -> str:
        status = self.status()
        return (
            "just started" if status is None or status.state != "running" else f"{status.stage or 'reading images'}, {status.percent:g} %"
        )

    def _forget_old_runs(self, keep: Path) -> None:
        runs = sorted((path for path in self.folder.glob("run_*") if path != keep), key=lambda path: path.stat().st_mtime)
        for path in runs[: max(0, len(runs) - MAX_RUNS + 1)]:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds a lock that ends with the process, however it ends."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"another process trains {self.versions.name!r} ({self._where()}): wait for it") from None
            yield


def is_training() -> bool:
    """Whether a training runs or waits for its process, in this server."""
    return any(task["status"] in ("SUBMITTED", "RUNNING") for task in host_tasks("train"))


def served_versions(options: AppOptions) -> ModelVersions:
    """Versions of the model in service; of a new one, named after the option or `trained`, where there is none."""
    folder = model_folder(options)
    if options.model is not None or folder is None:
        return ModelVersions(options.model_dir, options.model or UNNAMED)
    inside = folder.parent != options.model_dir  # a trained version lies in a folder named after the model
    return ModelVersions(options.model_dir, folder.parent.name if inside else folder.name)


def _reason(error: Exception) -> str:
    """Why a training failed, for the user."""
    if isinstance(error, requests.RequestException):
        return f"{explain(error)}; no tag is lost: train again once it does"
    return f"{type(error).__name__}: {error}"


def _doubts(candidate: Candidate) -> str:
    """Of which classes the masks are not to be trusted, and what helps."""
    found = hardly_told_apart(candidate.scores)
    if not found:
        return ""
    named = ", ".join(f"{name} (AUC {auc:.2f})" for name, auc in found.items())
    return f"; slices with and without {named} are hardly told apart, so masks may lie anywhere: look before you use them, tag more slices"


def _compared(candidate: Candidate) -> str:
    if candidate.scores_in_use == {}:
        return "not compared, because the model in use knows other classes"
    now, before = candidate.compared or (candidate.scores["mean"], None)
    if not math.isfinite(now):
        return "not judged, because the held-out patients have no class on some slices and not on others; tag more patients"
    return f"held-out score {now:.3f}" + (f", before {before:.3f}" if before is not None else "")
