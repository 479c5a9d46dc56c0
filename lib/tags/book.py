"""Tags of a datastore: the store, checked against the images and classes there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from app_cdm.data.tags import TagTable, TagValue, parse_tag
from app_cdm.data.volume import VolumeError
from lib.server.errors import UnknownNameError
from lib.tags.images import Images, count_slices
from lib.tags.record import Provenance, StoredTag, TagsByImage, check_user
from lib.tags.store import TagStore
from lib.tags.validation import check_tags


class TagBook:
    """Reads and writes tags; the only way by which tags get into the store.

    Args:
        store: where they are kept.
        images: the images there are.
        class_names: gives the classes that can be tagged, alphabetically; a model published later may bring them.
    """

    def __init__(self, store: TagStore, images: Images, class_names: Callable[[], tuple[str, ...]]) -> None:
        self.store = store
        self.images = images
        self.class_names = class_names

    def check(self, given: object) -> TagsByImage:
        """Checks tags without storing them; see `check_tags`."""
        return check_tags(given, self.images, self.class_names())

    def write(self, given: object, user: str, provenance: Provenance) -> int:
        """Checks and stores tags: all or none.

        Args:
            given: image -> class -> tag.
            user: who tags.
            provenance: how the tags came about.

        Returns:
            The number of the action; when this returns, the tags are on the disk.

        Raises:
            TagError, UnknownNameError, VolumeError: see `check_tags`.
        """
        return self.record(self.check(given), user, provenance)

    def record(self, checked: TagsByImage, user: str, provenance: Provenance, patients: Mapping[str, str] | None = None) -> int:
        """Stores tags that `check` returned, and whose the images are; see `write`."""
        return self.store.append(checked, check_user(user), provenance, patients)

    def forget(self, image: str, user: str) -> None:
        """Makes every class of an image unknown again, as the image is removed; another may come under its id."""
        self.store.forget(image, user)

    def tags(self, image: str) -> dict[str, StoredTag]:
        """Class -> tag of one image, for every class there is and every one that was ever tagged."""
        return {**dict.fromkeys(self.class_names()), **self.store.tags(image)}

    def known(self) -> TagsByImage:
        """Image -> class -> tag, by name, for images that are there; what is unknown is left out."""
        known = self.store.known()
        return {image: known[image] for image in sorted(self.images.ids() & known.keys())}

    def tagged(self) -> set[str]:
        """Images that are there and have a tag for some class."""
        return self.images.ids() & self.store.known().keys()

    def complete(self) -> set[str]:
        """Images that are there and have a tag for every class; for any class while none is known."""
        return self.images.ids() & self.store.complete(self.class_names())

    def table(self) -> TagTable:
        """What training learns from: images that are there, with their tags and patients; a table's patients count before DICOM's.

        Headers are read of the images alone that are present from the first slice on, and so perhaps on all.
        """
        names, patients = self.class_names(), {**self.images.patients(), **self.store.patients()}
        known = {image: {name: by_class[name] for name in names if name in by_class} for image, by_class in self.known().items()}
        tags = {image: {name: parse_tag(value) for name, value in by_class.items()} for image, by_class in known.items() if by_class}
        from_the_first = (image for image, by_class in tags.items() if any(map(_begins_at_first, by_class.values())))
        return TagTable(names, tags, {image: patients.get(image, image) for image in tags}, self._count_slices(from_the_first))

    def _count_slices(self, images: Iterable[str]) -> dict[str, int]:
        """Image -> slices; one that cannot be read is left out, and named when it is learned from."""
        found = {}
        for image in images:
            with suppress(VolumeError, OSError, UnknownNameError):
                found[image] = count_slices(self.images, image)
        return found

    def summary(self) -> dict[str, Any]:
        """How far tagging has come, and who did it."""
        tags, num_images = self.known(), len(self.images.ids())
        names = sorted({*self.class_names(), *(name for by_class in tags.values() for name in by_class)})
        events = [event for event in self.store.current() if event.class_name in tags.get(event.image, ())]
        return {
            "images": num_images,
            "tagged": len(tags),
            "complete": len(self.complete()),
            "classes": {name: _count(tags, name, num_images) for name in names},
            "users": dict(sorted(Counter(event.user for event in events).items())),
            "provenance": dict(sorted(Counter(event.provenance for event in events).items())),
        }


def _begins_at_first(tag: TagValue) -> bool:
    return isinstance(tag, tuple) and tag[0][0] == 0


def _count(tags: TagsByImage, name: str, num_images: int) -> dict[str, int]:
    values = [by_class[name] for by_class in tags.values() if name in by_class]
    absent, somewhere = sum(value is False for value in values), sum(value is True for value in values)
    return {
        "tagged": len(values),
        "absent": absent,
        "present": len(values) - absent,
        "present_somewhere": somewhere,
        "unknown": num_images - len(values),
    }
