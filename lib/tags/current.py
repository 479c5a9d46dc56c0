"""The tags in force, in memory: brought up to date by what was added to the history, however long that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lib.tags.record import StoredTag, TagEvent, TagsByImage

# Gives the entries after one with this number, oldest first.
ReadSince = Callable[[int], Iterable[TagEvent]]


class CurrentTags:
    """The newest entry of every image and class.

    History is append-only and its numbers rise, in all processes: what this one has not seen yet comes after what it has.
    The caller keeps others out meanwhile.
    """

    def __init__(self) -> None:
        self._newest: dict[str, dict[str, TagEvent]] = {}
        self._known: TagsByImage = {}
        self._complete: tuple[tuple[str, ...], frozenset[str]] | None = None
        self._last = 0

    def update(self, read_since: ReadSince) -> None:
        """Takes in what was added."""
        for event in read_since(self._last):
            self._newest.setdefault(event.image, {})[event.class_name] = event
            # Another dictionary in its place: somebody may hold the old one.
            known: dict[str, StoredTag] = {entry.class_name: entry.value for entry in self.of(event.image) if entry.value is not None}
            if known:
                self._known[event.image] = known
            else:
                self._known.pop(event.image, None)
            self._complete, self._last = None, event.event

    def of(self, image: str) -> list[TagEvent]:
        """The entries of an image, by class."""
        return [event for _, event in sorted(self._newest.get(image, {}).items())]

    def all(self) -> list[TagEvent]:
        """The entries of all images, by image and class."""
        return [event for image in sorted(self._newest) for event in self.of(image)]

    def by_image(self) -> dict[str, list[TagEvent]]:
        """Image -> its entries, by class."""
        return {image: self.of(image) for image in self._newest}

    def known(self) -> TagsByImage:
        """Image -> class -> tag, classes by name; what is unknown is left out. The inner dictionaries must not be changed."""
        return self._known.copy()

    def complete(self, names: Sequence[str]) -> frozenset[str]:
        """Images with a tag for each of these classes; with any tag where there are none."""
        if self._complete is None or self._complete[0] != tuple(names):
            found = frozenset(image for image, by_class in self._known.items() if all(name in by_class for name in names))
            self._complete = tuple(names), found
        return self._complete[1]
