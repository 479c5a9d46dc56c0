"""Submit Label in a viewer becomes tags."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from app_cdm.data.tags import TagError
from app_cdm.data.volume import VolumeError, read_volume
from lib.tags.book import TagBook
from lib.tags.mask import check_values, class_numbers, known_numbers, tags_of_mask
from lib.tags.record import UNKNOWN_USER

logger = logging.getLogger(__name__)

# The key of an image's info under which tags are sent.
TAGS = "tags"
FINAL: str = DefaultLabelTag.FINAL.value


@dataclass(frozen=True)
class Submission:
    """What a request says of the label that it submits, and the host does not pass on.

    Attributes:
        label_tag: where the label is stored; only a final one was judged by somebody.
        label_info: names of the segments.
        user: who submits.
    """

    label_tag: str
    label_info: object
    user: str


# Of the request that this thread answers.
submission: ContextVar[Submission | None] = ContextVar("submission", default=None)
acting_user: ContextVar[str] = ContextVar("acting_user", default=UNKNOWN_USER)


def tag_submission(book: TagBook, datastore: Datastore, image_id: str) -> dict[str, Any]:
    """Derives tags from the label that was just stored for an image, and stores them with provenance `mask`.

    Args:
        book: where tags go.
        datastore: where the label is.
        image_id: the image.

    Returns:
        For the reply: `tags`, or `tags_refused` with the reason, with which the label is stored all the same. Empty for
        a label that is not a final one (a model's, or a pre-computed one).
    """
    submitted = submission.get()
    if submitted is None or submitted.label_tag != FINAL:
        return {}
    # DICOMweb's own would look the image's id up as that of a segmentation series.
    label_file = Path(LocalDatastore.get_label_uri(datastore, image_id, FINAL))
    try:
        names, label = book.class_names(), read_volume(label_file)
        check_values(label, known_numbers(names, submitted.label_info))
        tags = tags_of_mask(label, book.images.grid(image_id), class_numbers(names, submitted.label_info))
        if tags:
            book.write({image_id: tags}, submitted.user, "mask")
    except (VolumeError, TagError) as error:
        logger.warning("Label of %s stored, but it gives no tags: %s", image_id, error)
        return {"tags_refused": str(error)}
    return {"tags": tags}
