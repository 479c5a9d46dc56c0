"""The tag store: one SQLite file, append-only, safe with several threads and processes.

Write-ahead logging with `synchronous = FULL`: a write that has returned is on the disk, whatever ends the process after.
Entries are never changed or removed; the tag in force is the newest entry of an image and class.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from lib.results.errors import NO_SPACE, NoSpaceError
from lib.tags.current import CurrentTags
from lib.tags.record import Provenance, StoredTag, TagEvent, TagsByImage, encode
from lib.tags.schema import COLUMNS, create_schema

T = TypeVar("T")

BUSY_S = 60.0
PROBE_BYTES = 1 << 16


class NothingToUndoError(Exception):
    """There is no action left to take back, or another came in between."""


class TagStore:
    """Tags of images, with their history.

    Args:
        path: the file; made with its folder if missing.

    Raises:
        OSError: it cannot be made or opened there, is no tag store, or is of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._process = 0
        self._open: sqlite3.Connection
        self._abandoned: list[sqlite3.Connection] = []
        self._current = CurrentTags()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection():
            pass

    def append(
        self,
        tags: Mapping[str, Mapping[str, StoredTag]],
        user: str,
        provenance: Provenance,
        patients: Mapping[str, str] | None = None,
    ) -> int:
        """Stores tags of any number of images and classes as one action: all or none.

        Args:
            tags: image -> class -> tag, already checked.
            user: who tags.
            provenance: how the tags came about.
            patients: image -> patient, to be remembered with them.

        Returns:
            The number of the action. When this returns, the tags are on the disk.
        """
        rows = [(image, name, encode(value), provenance) for image, by_class in tags.items() for name, value in by_class.items()]
        with self._transaction() as connection:
            self._insert_patients(connection, patients or {})
            return self._insert(connection, rows, user)

    def undo(self, image: str, user: str, action: int | None = None) -> tuple[int, dict[str, StoredTag]]:
        """Takes back the last action on an image that has not been taken back; history keeps both.

        Args:
            image: image id; other images of a bulk action stay as they are.
            user: who takes it back.
            action: the action meant; another one is refused.

        Returns:
            The action taken back, and the tags that are in force again.

        Raises:
            NothingToUndoError: there is none, or the last one is another than meant.
        """
        with self._transaction() as connection:
            events = _events(connection, "WHERE image = ? ORDER BY id", (image,))
            last = last_action(events)
            if last is None or action not in (None, last):
                wanted = "" if action is None or last is None else f": action {action} is not the last, which is {last}"
                raise NothingToUndoError(f"image {image!r}: nothing to undo{wanted}")
            before = {event.class_name: previous(events, event) for event in events if event.action == last}
            rows = [
                (image, name, encode(found.value if found else None), found.provenance if found else "manual")
                for name, found in before.items()
            ]
            self._insert(connection, rows, user, undoes=last)
            return last, {name: found.value if found else None for name, found in before.items()}

    def forget(self, image: str, user: str) -> None:
        """Makes every class of an image unknown for good: what was done before stays in the history and cannot come back by `undo`.

        Its patient is forgotten too.
        """
        with self._transaction() as connection:
            connection.execute("DELETE FROM patients WHERE image = ?", (image,))
            names = sorted({event.class_name for event in _events(connection, "WHERE image = ?", (image,))})
            if names:
                self._insert(connection, [(image, name, encode(None), "manual") for name in names], user, is_end=True)

    def tags(self, image: str) -> dict[str, StoredTag]:
        """Class -> tag in force of one image; a class that was never tagged is missing."""
        return {event.class_name: event.value for event in self.current(image)}

    def all_tags(self) -> TagsByImage:
        """Image -> class -> tag in force."""
        found: TagsByImage = {}
        for event in self.current():
            found.setdefault(event.image, {})[event.class_name] = event.value
        return found

    def current(self, image: str | None = None) -> list[TagEvent]:
        """The entries in force, of one image or of all, by image and class."""
        with self._up_to_date() as current:
            return current.all() if image is None else current.of(image)

    def current_by_image(self) -> dict[str, list[TagEvent]]:
        """Image -> its entries in force, by class; of images that were ever tagged."""
        with self._up_to_date() as current:
            return current.by_image()

    def known(self) -> TagsByImage:
        """Image -> class -> tag in force; what is unknown is left out. The inner dictionaries must not be changed."""
        with self._up_to_date() as current:
            return current.known()

    def complete(self, names: Sequence[str]) -> frozenset[str]:
        """Images with a tag for each of these classes; with any tag where there are none."""
        with self._up_to_date() as current:
            return current.complete(names)

    def history(self, image: str, class_name: str | None = None) -> list[TagEvent]:
        """Every entry of an image, oldest first."""
        events = self._read(lambda connection: _events(connection, "WHERE image = ? ORDER BY id", (image,)))
        return [event for event in events if class_name in (None, event.class_name)]

    def set_patients(self, patients: Mapping[str, str]) -> None:
        """Remembers which patient an image is of; held-out sets are made by patient."""
        with self._transaction() as connection:
            self._insert_patients(connection, patients)

    def patients(self) -> dict[str, str]:
        """Image -> patient, where it was given."""
        return self._read(lambda connection: dict(connection.execute("SELECT image, patient FROM patients")))

    def back_up(self, target: Path) -> None:
        """Copies the whole store, history included, into a new file while it is in use.

        Raises:
            FileExistsError: there is such a file already.
            OSError: it cannot be written; it is not there then.
        """
        if target.exists():
            raise FileExistsError(f"{target} exists already: choose another name")
        target.open("xb").close()  # from here on it is ours to remove
        try:
            with closing(sqlite3.connect(target)) as copy:
                self._read(lambda connection: connection.backup(copy))
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, sqlite3.Error):
                raise OSError(f"no backup: {target} cannot be written ({error})") from error
            raise

    def close(self) -> None:
        """Lets go of the file; the next use opens it again."""
        with self._lock:
            if self._process == os.getpid():
                self._open.close()
            self._process = 0

    @staticmethod
    def _insert_patients(connection: sqlite3.Connection, patients: Mapping[str, str]) -> None:
        connection.executemany("INSERT OR REPLACE INTO patients VALUES (?, ?)", patients.items())

    @staticmethod
    def _insert(
        connection: sqlite3.Connection,
        rows: Sequence[tuple[str, str, str, str]],
        user: str,
        undoes: int | None = None,
        *,
        is_end: bool = False,
    ) -> int:
        action = int(connection.execute("SELECT coalesce(max(action), 0) + 1 FROM events").fetchone()[0])
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        connection.executemany(
            "INSERT INTO events (action, image, class, value, provenance, user, time, undoes) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(action, *row, user, time, action if is_end else undoes) for row in rows],
        )
        return action

    @contextmanager
    def _up_to_date(self) -> Iterator[CurrentTags]:
        """The tags in force, for one thread at a time."""
        with self._connection() as connection:
            self._current.update(lambda last: _events(connection, "WHERE id > ? ORDER BY id", (last,)))
            yield self._current

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with self._connection() as connection:
            return query(connection)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write: the only one at a time in all processes, and whole or not at all.

        Raises:
            NoSpaceError: the disk is full.
        """
        with self._connection() as connection, _enough_space(self.path.parent):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The process's connection, for one thread at a time; SQLite forbids to use one across a fork."""
        with self._lock:
            if self._process != os.getpid():
                if self._process:
                    self._abandoned.append(self._open)  # the parent's: closing it here would be using it
                self._open = open_store(self.path)
                self._process = os.getpid()
            yield self._open


def open_store(path: Path) -> sqlite3.Connection:
    """Opens the file, makes its tables if they are missing.

    Raises:
        OSError: it cannot be opened, or not safely.
    """
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        create_schema(connection, path)
    except (sqlite3.Error, OSError) as error:
        if connection is not None:
            connection.close()
        raise OSError(f"tag store {path}: {error}; another place can be given with --tags-file") from error
    return connection


def last_action(events: list[TagEvent]) -> int | None:
    """The newest action on an image that neither is an undo nor was taken back, since the image was last removed."""
    end = max((event.action for event in events if event.undoes == event.action), default=0)
    undone = {event.undoes for event in events}
    open_actions = (event.action for event in events if event.action > end and event.undoes is None and event.action not in undone)
    return max(open_actions, default=None)


def previous(events: list[TagEvent], event: TagEvent) -> TagEvent | None:
    """The entry that an entry replaced."""
    older = [item for item in events if item.class_name == event.class_name and item.event < event.event]
    return older[-1] if older else None


def _events(connection: sqlite3.Connection, condition: str, values: tuple[Any, ...]) -> list[TagEvent]:
    rows = connection.execute(f"SELECT {COLUMNS} FROM events {condition}", values)
    return [TagEvent(event, action, image, name, json.loads(value), *rest) for event, action, image, name, value, *rest in rows]


@contextmanager
def _enough_space(folder: Path) -> Iterator[None]:
    """Says in plain words that the disk is full."""
    try:
        yield
    except sqlite3.OperationalError as error:
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says in which call
        if kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and _is_full(folder)):
            raise NoSpaceError("the disk that keeps the tags is full: no tag was stored; make room there and try again") from error
        raise


def _is_full(folder: Path) -> bool:
    """Whether a small file finds no room; SQLite does not say why a write was refused, and there may be a quota."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        return error.errno in NO_SPACE
    return False
