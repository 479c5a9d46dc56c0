"""Accept or reject: a result becomes the image's final label and its tags, or the absence of its classes."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore

from app_cdm.data.dicom_seg import Algorithm, Authorship
from lib.results.errors import ResultConflictError
from lib.results.images import check_unchanged
from lib.results.record import ACCEPTED, REJECTED, Result, now
from lib.results.store import ResultStore
from lib.tags.book import TagBook
from lib.tags.mask import tags_of_mask
from lib.tags.record import Provenance, StoredTag
from lib.tags.submission import FINAL

Tags = dict[str, StoredTag]


class Judge:
    """Carries out what a reader decides on a result, once.

    Label, tags and decision are written in this order. Whoever is stopped in between finds the result open and decides again,
    which writes the same label (and in a PACS the same instance) once more and the tags only where they are not in force yet.

    Args:
        store: the results.
        datastore: where labels go.
        book: where tags go.
    """

    def __init__(self, store: ResultStore, datastore: Datastore, book: TagBook) -> None:
        self._store, self._datastore, self._book = store, datastore, book

    def accept(self, result_id: str, user: str) -> dict[str, Any]:
        """Stores the mask of a result as the final label of its image, and the tags that follow from it.

        Returns:
            `image`, `label` and `tags`; of a result that is accepted already, the answer that was given then.

        Raises:
            UnknownNameError: there is no such result, or its image is gone.
            ResultConflictError: it has been rejected, its image has changed, or none of its classes can be tagged.
        """
        with self._store.deciding(result_id) as result:
            if result.decision is not None:
                return _earlier(result, ACCEPTED)
            check_unchanged(self._datastore, result)
            mask_file = self._store.mask_file(result.id)
            numbers = {name: (value,) for name, value in result.labels.items() if name in self._classes(result)}
            tags = tags_of_mask(self._store.read_mask_volume(result.id), self._book.images.grid(result.image), numbers)
            label = self._datastore.save_label(
                result.image, str(mask_file), FINAL, label_info(result, user), author=authorship(result, user)
            )
            self._tag(result, tags, user, "mask")
            return self._decide(result, ACCEPTED, user, {"image": result.image, "label": label, "tags": tags})

    def reject(self, result_id: str, user: str) -> dict[str, Any]:
        """Tags the classes of a result as absent.

        Returns:
            `image` and `tags`; of a result that is rejected already, the answer that was given then.

        Raises:
            UnknownNameError: there is no such result, or its image is gone.
            ResultConflictError: it has been accepted, its image has changed, or none of its classes can be tagged.
        """
        with self._store.deciding(result_id) as result:
            if result.decision is not None:
                return _earlier(result, REJECTED)
            check_unchanged(self._datastore, result)
            tags: Tags = dict.fromkeys(self._classes(result), False)
            self._tag(result, tags, user, "manual")
            return self._decide(result, REJECTED, user, {"image": result.image, "tags": tags})

    def _classes(self, result: Result) -> list[str]:
        """Classes of the result that can be tagged."""
        known = [name for name in result.labels if name in self._book.class_names()]
        if not known:
            raise ResultConflictError(
                f"result {result.id!r} has classes {list(result.labels)}, of which none can be tagged here: there are "
                f"{list(self._book.class_names())}"
            )
        return known

    def _tag(self, result: Result, tags: Tags, user: str, provenance: Provenance) -> None:
        in_force = {event.class_name: (event.value, event.user, event.provenance) for event in self._book.store.current(result.image)}
        if any(in_force.get(name) != (value, user, provenance) for name, value in tags.items()):
            self._book.write({result.image: tags}, user, provenance)

    def _decide(self, result: Result, verdict: str, user: str, reply: dict[str, Any]) -> dict[str, Any]:
        self._store.decide(result.id, {"verdict": verdict, "user": user, "time": now(), "reply": reply})
        return reply


def label_info(result: Result, user: str) -> dict[str, Any]:
    """What the label says of itself: the names of its values in order, as viewers send them, and where it came from."""
    names = {value: name for name, value in result.labels.items()}
    segments = [{"name": names[value]} if value in names else {} for value in range(1, max(names) + 1)]
    origin = {"result": result.id, "model": result.reply["model"], "model_version": result.reply["model_version"]}
    return {"label_info": segments, "origin": "accepted auto-segmentation", "user": user, **origin}


def authorship(result: Result, user: str) -> Authorship:
    """The same of a DICOM SEG."""
    model, version = result.reply["model"], result.reply["model_version"]
    return Authorship(
        identity=f"result {result.id}",
        algorithm=Algorithm(f"app_cdm {model}", version),
        creator=user,
        description=f"{model} {version}, {', '.join(result.labels)}",
        software=f"app_cdm, model {version}",
    )


def _earlier(result: Result, verdict: str) -> dict[str, Any]:
    decision = result.decision or {}
    if decision["verdict"] != verdict:
        raise ResultConflictError(
            f"result {result.id!r} was {decision['verdict']} by {decision['user']} at {decision['time']}: a result is decided on once; "
            "run again to decide anew"
        )
    reply: dict[str, Any] = decision["reply"]
    return reply
