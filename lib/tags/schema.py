"""Tables of the tag store."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from lib.tags.record import PROVENANCES

VERSION = 1
APPLICATION_ID = 0x43444D54  # "CDMT", so that `file` and we can tell it from any other SQLite file
WAL_ATTEMPTS = 200
WAL_PAUSE_S = 0.05

COLUMNS = "id, action, image, class, value, user, time, provenance, undoes"

STATEMENTS = (
    f"""CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        action INTEGER NOT NULL,
        image TEXT NOT NULL,
        class TEXT NOT NULL,
        value TEXT NOT NULL,
        user TEXT NOT NULL,
        time TEXT NOT NULL,
        provenance TEXT NOT NULL CHECK (provenance IN {PROVENANCES}),
        undoes INTEGER
    )""",
    "CREATE INDEX events_by_tag ON events (image, class, id)",
    "CREATE INDEX events_by_action ON events (action)",
    "CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'history is append-only'); END",
    "CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'history is append-only'); END",
    "CREATE TABLE patients (image TEXT PRIMARY KEY, patient TEXT NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


def create_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the tables where there are none, and sets what makes a write durable.

    Raises:
        OSError: the file is something else, of a newer version, or on a disk that cannot keep a write-ahead log.
    """
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    if _version(connection) == 0:
        connection.execute("BEGIN IMMEDIATE")  # of several processes that find no tables, one makes them
        try:
            if _version(connection) == 0:
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise OSError("it is a database, but no tag store")
                for statement in STATEMENTS:
                    connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    if _version(connection) > VERSION:
        raise OSError(f"it has version {_version(connection)}, this program knows up to {VERSION}: update the program")
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise OSError("it is a database, but no tag store")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turns write-ahead logging on; while another process does the same, SQLite answers `locked` at once instead of waiting."""
    for attempt in range(WAL_ATTEMPTS):
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == WAL_ATTEMPTS - 1:
                raise
            time.sleep(WAL_PAUSE_S)
            continue
        if mode != "wal":
            raise OSError(f"its disk cannot keep a write-ahead log (journal mode {mode!r}; a network drive?)")
        return
