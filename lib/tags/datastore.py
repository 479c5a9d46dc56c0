"""Any datastore of the host, with tags beside its own index."""

from __future__ import annotations

from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore

from lib.server.errors import UnusableRequestError
from lib.tags.book import TagBook
from lib.tags.submission import FINAL, TAGS, acting_user


class TaggedDatastore(LocalDatastore):  # type: ignore[misc]  # monailabel ships no types
    """Diverts the info key `tags` to the tag store; everything else goes where the host puts it."""

    tag_book: TagBook

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Stores what is under `tags` as tags, the rest as the host does; nothing, if a tag is refused.

        Raises:
            TagError, UnknownNameError, VolumeError: see `check_tags`.
        """
        # The host adds the user to every info; alone it is not worth writing.
        rest = {key: value for key, value in info.items() if key != TAGS}
        tags = self.tag_book.check({image_id: info[TAGS]}) if TAGS in info else None
        if tags is None or set(rest) - {"user"}:
            if isinstance(self, DICOMWebDatastore):
                self.get_image_uri(image_id)  # the host knows only what is in its cache
            super().update_image_info(image_id, rest)
        if tags is not None:
            self.tag_book.record(tags, acting_user.get(), "manual")

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What the host knows of an image, and its tags."""
        info: dict[str, Any] = {key: value for key, value in super().get_image_info(image_id).items() if key != TAGS}
        tags = self.tag_book.store.tags(image_id)
        return info | {TAGS: tags} if tags else info

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds an image, without tags: they need an image to be checked against."""
        if TAGS in (image_info or {}):
            raise UnusableRequestError("params must not hold 'tags': add the image, then send them with PUT /tags/<image>")
        return str(super().add_image(image_id, image_filename, image_info))

    def remove_image(self, image_id: str) -> None:
        """Removes an image; its tags become unknown, and stay in the history."""
        super().remove_image(image_id)
        if not isinstance(self, DICOMWebDatastore):  # of which only the copy in the cache was removed
            self.tag_book.forget(image_id, acting_user.get())

    def status(self) -> dict[str, Any]:
        """Counts for `/info/`: completed is every image with a tag or a final label, once; viewers allow training above 0."""
        status: dict[str, Any] = super().status()
        tagged = set(self.tag_book.known())
        if isinstance(self, DICOMWebDatastore):
            labelled = set(self.get_labeled_images())
        else:
            objects = list(self._datastore.objects.items())  # a copy: `/info/` must not wait for the index
            labelled = {image_id for image_id, image in objects if FINAL in image.labels}
        return status | {"completed": len(tagged | labelled), "tagged": len(tagged)}


def add_tags(datastore: Datastore, tag_book: TagBook) -> Datastore:
    """Gives a datastore its tags.

    The host makes some datastores itself, so the object is extended, not its construction.

    Args:
        datastore: a local folder, or the cache of a DICOMweb server.
        tag_book: its tags.
    """
    kind = type(datastore)
    datastore.__class__ = type(f"Tagged{kind.__name__}", (TaggedDatastore, kind), {})
    datastore.tag_book = tag_book
    return datastore
