"""Batch inference that works without a GPU and survives single bad images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from lib.index import enough_space
from lib.server.errors import OF_ONE_IMAGE, explain

logger = logging.getLogger(__name__)

# Under this key a request carries the event that stops a batch between two images.
STOP_KEY = "_stop"


class BatchInfer(BatchInferTask):  # type: ignore[misc]  # monailabel ships no types
    """Segments images of the datastore one after the other and stores the masks.

    The host's own divides by the number of GPUs and lets one bad image end the batch.
    """

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        """Runs a batch.

        Args:
            request: `model`, `images` (all, labeled, unlabeled), `max_batch_size` (0 is no limit), `label_tag` and the
                task's own parameters.
            datastore: images and labels.
            infer: one inference.

        Returns:
            By image id: label, tag and parameters, or `{"error": reason}`.

        Raises:
            NoSpaceError, ModelMissingError: no other image would fare better.
        """
        stop = request.get(STOP_KEY)
        images = sorted(self.get_images(request, datastore))
        limit = int(request.get("max_batch_size") or 0) or len(images)
        common = {key: value for key, value in request.items() if key not in (STOP_KEY, "images", "max_batch_size")}
        results: dict[str, Any] = {}
        for image in images[:limit]:
            if stop is not None and stop.is_set():
                break
            results[image] = self._segment({**common, "image": image, "save_label": True}, datastore, infer)
            logger.info("Batch: %s (%d of %d)", image, len(results), min(limit, len(images)))
        return results

    @staticmethod
    def _segment(request: dict[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        try:
            with enough_space():
                answer = infer(request, datastore)
        except OF_ONE_IMAGE as error:
            logger.warning("Batch: %s has no mask: %s", request["image"], explain(error))
            return {"error": explain(error)}
        Path(answer.pop("file")).unlink(missing_ok=True)
        return answer
