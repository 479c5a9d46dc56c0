"""The host's index of a folder, written by one thread at a time, at a cost that hardly grows with the number of images."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from watchdog.events import FileSystemEvent

from app_cdm.data.grid import Volume
from app_cdm.data.writing import write_atomically
from lib.grids import KnownGrids
from lib.results.errors import DISK_IS_FULL, NO_SPACE, NoSpaceError
from lib.server.checks import STORED_SUFFIXES, is_image_id

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


@contextmanager
def enough_space() -> Iterator[None]:
    """Says in plain words that the disk is full.

    Raises:
        NoSpaceError: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise NoSpaceError(DISK_IS_FULL) from error
        raise


class FolderIndex(LocalDatastore):  # type: ignore[misc]  # monailabel ships no types
    """Comes between the host's local datastore and those that are used here.

    Differs from the host's in what things cost, and in what remains where they go wrong:

    - The folder is listed once where the host looks at every file several times and searches a list for each.
    - After a change of one image, only its entry is turned into text again; the file is put in place in one step, so that
      a server that is killed leaves a whole one. One image is one line.
    - Events of files that the index knows of already, as of all that the server writes itself, do not lead to a new look
      at the folder; of many files that appear together one look is taken.
    - Images and labels are put in place in one step too, so that a kill or a full disk leaves those before them; a label lies there under
      one suffix only, so that none of those before it comes back.

    `index_lock`, a re-entrant lock, and `grids` must be set before use.
    """

    index_lock: Any
    grids: KnownGrids
    image_suffixes: tuple[str, ...] = STORED_SUFFIXES
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

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image; the host adds to its `strategy`, which a request may have set to anything."""
        info: dict[str, Any] = super().get_image_info(image_id)
        return info if isinstance(info.get("strategy", {}), dict) else {**info, "strategy": {}}

    @one_at_a_time
    @enough_space()
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds an image.

        Raises:
            NoSpaceError: the disk is full; the image is the one before or this one, whole.
        """
        before = self._datastore.objects.get(image_id)
        data = self._describe(image_id, image_filename, image_info)
        target = self._image_file(image_id, data)
        with _copy_beside(Path(image_filename), target) as copy:
            if before is not None:
                self._make_way(image_id)
            copy.replace(target)
        self._datastore.objects[image_id] = ImageLabelModel(image=data)
        with self._change_of(image_id):
            self._update_datastore_file()
        if before is not None and before.image.ext != data.ext:
            self._image_file(image_id, before.image).unlink(missing_ok=True)
        return image_id

    @one_at_a_time
    def remove_image(self, image_id: str) -> None:
        """Removes an image and its labels, from the index too: the host leaves that to the next look at the folder."""
        self._let_go(image_id)
        super().remove_image(image_id)
        if self._datastore.objects.pop(image_id, None) is not None:
            with self._change_of(image_id):
                self._update_datastore_file()

    @one_at_a_time
    def forget(self, image_id: str) -> None:
        """Removes all that belongs to an image: what comes under its id next must not inherit it."""
        self.remove_labels(image_id)

    @one_at_a_time
    def remove_labels(self, image_id: str) -> None:
        """Removes the labels of an image."""
        for tag in self._folders_of_labels():
            self.remove_label(image_id, tag)

    def notice_grid(self, image_id: str, grid: Volume) -> None:
        """Forgets what belongs to a series whose slices are others than when it was last used, as if it were another image.

        Raises:
            NoSpaceError: the disk is full, so that it would be forgotten again next time.
        """
        if self.grids.fits(image_id, grid):
            return
        with self.index_lock:
            fits = self.grids.fits(image_id, grid)
            if fits is False:
                logger.warning("Series %s has other slices than before, now %s: its labels and tags go", image_id, grid.array.shape)
                self.forget(image_id)
            # A full disk keeps nobody from reading an image that is new here; its grid is noted another time.
            with enough_space() if fits is False else suppress(OSError):
                self.grids.keep(image_id, grid)

    @one_at_a_time
    @enough_space()
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Stores a label.

        Raises:
            ImageNotFoundException: there is no such image.
            NoSpaceError: the disk is full; the label is the one before or this one, whole.
        """
        entry = self._datastore.objects.get(image_id)
        if entry is None or not self._image_file(image_id, entry.image).is_file():
            raise ImageNotFoundException(f"Image {image_id} not found")
        data = self._describe(image_id, label_filename, label_info)
        target = self._label_file(image_id, label_tag, data.ext)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _copy_beside(Path(label_filename), target) as copy:
            copy.replace(target)
        entry.labels[label_tag] = data
        with self._change_of(image_id):
            self._update_datastore_file()
        self._unlink_label(image_id, label_tag, keep=data.ext)
        return image_id

    @one_at_a_time
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Removes a label, from the index too."""
        entry = self._datastore.objects.get(label_id)
        if entry is not None and entry.labels.pop(label_tag, None) is not None:
            with self._change_of(label_id):
                self._update_datastore_file()
        self._unlink_label(label_id, label_tag)

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

    def _let_go(self, image_id: str) -> None:
        """Called when an image is removed."""
        self.forget(image_id)

    def _make_way(self, image_id: str) -> None:
        """Called when a file takes the place of another under the same id; here it is the same image, fetched once more."""

    def _describe(self, image_id: str, file: str, info: dict[str, Any] | None) -> DataModel:
        """What the index says of an image or a label that is made of a file."""
        _, ext = self._to_id(os.path.basename(file))
        return DataModel(info={**(info or {}), "ts": int(time.time()), "name": self._filename(image_id, ext)}, ext=ext)

    def _image_file(self, image_id: str, data: DataModel) -> Path:
        return Path(self._datastore.image_path(), self._filename(image_id, data.ext))

    def _label_file(self, image_id: str, tag: str, ext: str) -> Path:
        return Path(self._datastore.label_path(tag), self._filename(image_id, ext))

    def _unlink_label(self, image_id: str, tag: str, keep: str = "") -> None:
        """Removes the files of a label, in any of which the next look at the folder would find it, but for one suffix."""
        for ext in set(STORED_SUFFIXES) - {keep}:
            self._label_file(image_id, tag, ext).unlink(missing_ok=True)

    def _folders_of_labels(self) -> list[str]:
        """Tags under which labels may lie."""
        folder = Path(self._datastore.label_path(None))
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

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
            self._drop_strangers()
            self._generation += 1

    def _drop_strangers(self) -> None:
        """Drops entries that no server writes, and which could lead to files outside the studies."""
        objects = self._datastore.objects
        for image_id, entry in list(objects.items()):
            if not is_image_id(image_id) or entry.image.ext.lower() not in self.image_suffixes:
                logger.warning("The index names %r with suffix %r: passed over", image_id, entry.image.ext)
                del objects[image_id]
                continue
            for tag, label in list(entry.labels.items()):
                if not is_image_id(tag) or label.ext.lower() not in STORED_SUFFIXES:
                    logger.warning("The index names label %r of %r with suffix %r: passed over", tag, image_id, label.ext)
                    del entry.labels[tag]

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
        found, strangers = 0, []
        for tag in self._folders_of_labels():
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


@contextmanager
def _copy_beside(source: Path, target: Path) -> Iterator[Path]:
    """A copy beside the place where it is to be: hidden from looks at the folder, flushed to the disk, and gone if it is not moved."""
    copy = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with source.open("rb") as given, copy.open("xb") as file:
            shutil.copyfileobj(given, file)
            file.flush()
            os.fsync(file.fileno())
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _names_in(folder: str) -> set[str]:
    if not os.path.isdir(folder):
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)}


def _line(image_id: str, entry: ImageLabelModel) -> str:
    return f"    {json.dumps(image_id)}: {json.dumps(entry.model_dump(), default=str)}"
