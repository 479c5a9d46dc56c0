"""The host's index of a folder, written by one thread at a time, at a cost that hardly grows with the number of images."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from watchdog.events import FileSystemEvent

from app_cdm.data.writing import write_atomically

logger = logging.getLogger(__name__)

FINAL: str = DefaultLabelTag.FINAL.value
# Files that appear together are looked for once.
SETTLE_S = 0.3

Method = TypeVar("Method", bound=Callable[..., Any])


def one_at_a_time(method: Method) -> Method:
    """Serialises methods of one datastore: the host swaps its in-memory index under a writer, which then loses its entry."""

    @wraps(method)
    def locked(self: FolderIndex, *args: Any, **kwargs: Any) -> Any:
        with self.index_lock:
            return method(self, *args, **kwargs)

    return locked  # type: ignore[return-value]  # wraps keeps the signature


class FolderIndex(LocalDatastore):  # type: ignore[misc]  # monailabel ships no types
    """Comes between the host's local datastore and those that are used here.

    Differs from the host's in what things cost, not in what they do:

    - The folder is listed once where the host looks at every file several times and searches a list for each.
    - After a change of one image, only its entry is turned into text again; the file is put in place in one step, so that
      a server that is killed leaves a whole one. One image is one line.
    - Events of files that the index knows of already, as of all that the server writes itself, do not lead to a new look
      at the folder; of many files that appear together one look is taken.

    `index_lock`, a re-entrant lock, must be set before use.
    """

    index_lock: Any
    # The host makes some datastores itself and they get this class later: what follows are the values to begin with.
    _changing: str | None = None
    _lines: dict[str, str] | None = None
    _lines_of: LocalDatastoreModel | None = None
    _generation = 0
    _counted: tuple[int, frozenset[str], dict[str, int]] | None = None
    _events: set[str] | None = None

    def has_image(self, image_id: str) -> bool:
        """Whether there is such an image."""
        return image_id in self._datastore.objects

    def labelled(self) -> frozenset[str]:
        """Images with a final label; does not wait for the index."""
        return self._counts()[0]

    def label_tags(self) -> dict[str, int]:
        """Tag of labels -> how many there are; does not wait for the index."""
        return dict(self._counts()[1])

    @one_at_a_time
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds an image."""
        with self._change_of(image_id):
            return str(super().add_image(image_id, image_filename, image_info))

    @one_at_a_time
    def remove_image(self, image_id: str) -> None:
        """Removes an image and its labels, from the index too: the host leaves that to the next look at the folder."""
        super().remove_image(image_id)
        if self._datastore.objects.pop(image_id, None) is not None:
            with self._change_of(image_id):
                self._update_datastore_file()

    @one_at_a_time
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Stores a label."""
        with self._change_of(image_id):
            return str(super().save_label(image_id, label_filename, label_tag, label_info))

    @one_at_a_time
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Removes a label, from the index too."""
        super().remove_label(label_id, label_tag)
        entry = self._datastore.objects.get(label_id)
        if entry is not None and entry.labels.pop(label_tag, None) is not None:
            with self._change_of(label_id):
                self._update_datastore_file()

    @one_at_a_time
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Adds to what is known of an image."""
        with self._change_of(image_id):
            super().update_image_info(image_id, info)

    @one_at_a_time
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Adds to what is known of a label."""
        with self._change_of(label_id):
            super().update_label_info(label_id, label_tag, info)

    json = one_at_a_time(LocalDatastore.json)

    def follow(self) -> None:
        """Has the events of the folder come here, those of renamed files too; the host bound its own methods."""
        handler = getattr(self, "_handler", None)
        if handler is not None:
            handler.on_created = handler.on_deleted = handler.on_moved = self._on_any_event
            handler.on_modified = self._on_modify_event

    @contextmanager
    def _change_of(self, image_id: str) -> Iterator[None]:
        """Says that what is written meanwhile differs by one image; the index is locked."""
        self._changing = image_id
        try:
            yield
        finally:
            self._changing = None

    @one_at_a_time
    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        before = self._datastore
        super()._init_from_datastore_file(throw_exception)
        if self._datastore is not before:
            self._generation += 1

    @one_at_a_time
    def _update_datastore_file(self, lock: bool = True) -> None:
        with FileLock(self._lock_file) if lock else nullcontext():
            path = Path(self._datastore_config_path)
            write_atomically(path, self._as_text().encode())
            self._config_ts = path.stat().st_mtime
        self._generation += 1

    def _as_text(self) -> str:
        """The index file, one line an image; lines of images that did not change are those of last time."""
        model, objects = self._datastore, self._datastore.objects
        changing, lines = self._changing, self._lines if self._lines_of is model else None
        if changing is None:
            lines = None
        elif lines is not None and changing in objects:
            lines[changing] = _line(changing, objects[changing])
        elif lines is not None:
            lines.pop(changing, None)
        if lines is None or lines.keys() != objects.keys():
            lines = {image_id: _line(image_id, entry) for image_id, entry in objects.items()}
        self._lines, self._lines_of = lines, model
        head = json.dumps(model.model_dump(exclude={"base_path", "objects"}), indent=2, default=str)
        body = ",\n".join(lines.values())
        return f'{head[: head.rindex("}")].rstrip()},\n  "objects": {{\n{body}\n  }}\n}}\n'

    def _counts(self) -> tuple[frozenset[str], dict[str, int]]:
        generation, counted = self._generation, self._counted
        if counted is None or counted[0] != generation:
            objects = list(self._datastore.objects.items())  # a copy: `/info/` must not wait for the index
            held = [(image_id, tag) for image_id, entry in objects if entry.labels for tag in list(entry.labels)]
            labelled = frozenset(image_id for image_id, tag in held if tag == FINAL)
            counted = self._counted = generation, labelled, dict(Counter(tag for _, tag in held))
        return counted[1:]

    @one_at_a_time
    def _reconcile_datastore(self) -> None:
        """Brings the index in line with the files there are."""
        self._init_from_datastore_file()
        folder = _Listing()
        changes = self._forget_vanished(folder) + self._find_images(folder) + self._find_labels(folder)
        if changes:
            self._update_datastore_file()

    def _forget_vanished(self, folder: _Listing) -> int:
        """Drops what has no file any more, entry by entry: readers never meet an index that is empty for a moment."""
        objects, images = self._datastore.objects, self._datastore.image_path()
        vanished = [image_id for image_id, entry in objects.items() if not folder.has(images, self._filename(image_id, entry.image.ext))]
        for image_id in vanished:
            del objects[image_id]
        num_labels = 0
        for image_id, entry in objects.items():
            for tag, label in list(entry.labels.items()):
                if not folder.has(self._datastore.label_path(tag), self._filename(image_id, label.ext)):
                    del entry.labels[tag]
                    num_labels += 1
        if vanished or num_labels:
            logger.info("Files gone from the studies: of %d images %s and %d labels", len(vanished), vanished[:3], num_labels)
        return len(vanished) + num_labels

    def _find_images(self, folder: _Listing) -> int:
        """Adds images whose files are new."""
        objects, images, found = self._datastore.objects, self._datastore.image_path(), []
        for file in self._list_files(images, self._extensions):
            image_id, ext = self._to_id(file)
            name = self._filename(image_id, ext)
            if image_id not in objects and folder.has(images, name):
                objects[image_id] = ImageLabelModel(image=DataModel(info={"ts": int(time.time()), "name": name}, ext=ext))
                found.append(image_id)
        if found:
            logger.info("New images: %d, such as %s", len(found), found[:3])
        return len(found)

    def _find_labels(self, folder: _Listing) -> int:
        """Adds labels whose files are new."""
        labels = Path(self._datastore.label_path(None))
        found, strangers = 0, []
        for tag in sorted(path.name for path in labels.iterdir() if path.is_dir()):
            for file in self._list_files(self._datastore.label_path(tag), self._extensions):
                label_id, ext = self._to_id(file)
                entry = self._datastore.objects.get(label_id)
                if entry is None:
                    strangers.append(f"{tag}/{file}")
                elif tag not in entry.labels and folder.has(self._datastore.label_path(tag), self._filename(label_id, ext)):
                    info = {"ts": int(time.time()), "name": self._filename(label_id, ext)}
                    entry.labels[tag] = DataModel(info=info, ext=ext)
                    found += 1
        if strangers:
            logger.warning("Labels without an image are passed over: %d, such as %s", len(strangers), strangers[:3])
        return found

    def _on_any_event(self, event: FileSystemEvent) -> None:
        """A file appeared, vanished or was renamed."""
        paths = {str(path) for path in (event.src_path, event.dest_path) if path}
        if self._datastore_config_path in paths:  # put in place by another process, or by this one
            self._init_from_datastore_file()
            return
        with self.index_lock:
            if self._events is not None:
                self._events |= paths
            else:
                self._events = paths
                timer = threading.Timer(SETTLE_S, self._settle)
                timer.daemon = True
                timer.start()

    def _on_modify_event(self, event: FileSystemEvent) -> None:
        """The index was written by somebody else; what this process wrote is recognised by its time."""
        if event.src_path == self._datastore_config_path:
            self._init_from_datastore_file()

    def _settle(self) -> None:
        """Looks at the folder again, if the index does not know yet of what happened there."""
        with self.index_lock:
            paths, self._events = self._events or set(), None
            if not any(map(self._is_news, paths)):
                return
            try:
                self.refresh()
            except OSError as error:  # the folder itself is gone, or half of it
                logger.warning("The studies cannot be looked at again: %s", error)

    def _is_news(self, path: str) -> bool:
        folder, file = os.path.split(path)
        image_id, ext = self._to_id(file)
        entry = self._datastore.objects.get(image_id)
        if os.path.realpath(folder) == os.path.realpath(self._datastore.image_path()):
            known = entry is not None and entry.image.ext == ext
        else:
            label = entry.labels.get(os.path.basename(folder)) if entry is not None else None
            known = label is not None and label.ext == ext
        return bool(known != os.path.exists(path))


class _Listing:
    """Which files there are: each folder is listed once, when it is first asked for."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def has(self, folder: str, name: str) -> bool:
        """Whether a file, or what a link points to, is there."""
        if os.sep in name:
            return os.path.exists(os.path.join(folder, name))
        if folder not in self._names:
            self._names[folder] = _names_in(folder)
        return name in self._names[folder]


def _names_in(folder: str) -> set[str]:
    if not os.path.isdir(folder):
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)}


def _line(image_id: str, entry: ImageLabelModel) -> str:
    return f"    {json.dumps(image_id)}: {json.dumps(entry.model_dump(), default=str)}"
