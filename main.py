"""MONAI Label app: names its models and wires them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from lib.activelearning.cache import doubts_folder
from lib.activelearning.scorer import DoubtScorer
from lib.activelearning.strategies import strategies
from lib.child import announce_server, end_with_server
from lib.datastore import FolderDatastore
from lib.dicomweb.datastore import mend_pacs
from lib.infers.batch import BatchInfer
from lib.infers.run import run_inference
from lib.infers.segmentation import segmentation_tasks
from lib.models import ModelStore, known_class_names
from lib.options import AppOptions
from lib.results.store import ResultStore, results_folder
from lib.scoring.weak_label import NAME as WEAK_LABEL_SCORE
from lib.scoring.weak_label import WeakLabelScore
from lib.segmentations import CODES_FILE
from lib.server.install import has_web_application, install_server, share_the_interpreter, spare_from_collection
from lib.sessions import SafeSessions
from lib.tags.book import TagBook
from lib.tags.datastore import add_tags
from lib.tags.images import DatastoreImages
from lib.tags.location import is_url, tags_file
from lib.tags.store import TagStore
from lib.tags.submission import tag_submission
from lib.trainers.weak_label import NAME as WEAK_LABEL
from lib.trainers.weak_label import WeakLabel


class CdmApp(MONAILabelApp):  # type: ignore[misc]  # monailabel ships no types
    """Segmentation by a conditional diffusion model that was trained on image-level tags."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.options = AppOptions.from_conf(app_dir, conf)
        self.models = ModelStore(self.options)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="app_cdm",
            description="Weakly supervised segmentation with a conditional diffusion model; research use only, not a medical device",
            version="0.1.0",
            labels=list(self.options.classes) or None,  # None: those of the models
        )
        self._auto_update_scoring = False  # the host would score on every click of Next Sample
        if has_web_application():  # not in the processes that train
            announce_server()
            self.models.announce()
            self.results.remove_unfinished()
            install_server(self.options)
            spare_from_collection()
            share_the_interpreter()
            self.doubts.start()
        else:
            end_with_server()

    def init_datastore(self) -> Datastore:
        store = TagStore(tags_file(self.studies, self.options.cache_dir, self.options.tags_file))
        if is_url(self.studies):
            datastore = mend_pacs(super().init_datastore(), self.options.modalities, lambda: known_class_names(self.options))
        else:
            serves = has_web_application()  # the index is the server's; a process that trains reads it
            datastore = FolderDatastore(
                self.studies,
                self.options.cache_dir,
                auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD and serves,
                read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY or not serves,
            )
        self.tags = TagBook(store, DatastoreImages(datastore), lambda: known_class_names(self.options))
        self.doubts = DoubtScorer(self.models, datastore, self.tags, doubts_folder(self.studies, self.options.cache_dir))
        self.results = ResultStore(results_folder(self.studies, self.options.cache_dir))
        return add_tags(datastore, self.tags, self.options.model_dir / CODES_FILE)

    def init_infers(self) -> dict[str, InferTask]:
        return segmentation_tasks(self.models, self.datastore())

    def init_trainers(self) -> dict[str, TrainTask]:
        return {WEAK_LABEL: WeakLabel(self.options, self.tags, self.datastore().get_image_uri)}

    def init_strategies(self) -> dict[str, Strategy]:
        return strategies(self.tags, self.doubts)

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {WEAK_LABEL_SCORE: WeakLabelScore(self.models, self.tags)}

    def init_batch_infer(self) -> Callable[..., Any]:
        return BatchInfer()

    def _load_sessions(self, load: bool = False) -> SafeSessions | None:
        folder = settings.MONAI_LABEL_SESSION_PATH or str(self.options.cache_dir / "sessions")
        return SafeSessions(folder, settings.MONAI_LABEL_SESSION_EXPIRY) if load else None

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        return tag_submission(self.tags, self.datastore(), image_id)

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        return run_inference(self._infers, request, datastore or self.datastore())
