"""The tag store: nothing that was acknowledged is ever lost, and history only grows."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib.results.errors import NoSpaceError
from lib.tags.location import tags_file
from lib.tags.store import NothingToUndoError, TagStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TagStore]:
    made = TagStore(tmp_path / "folder" / "tags.sqlite")
    yield made
    made.close()


class Writer:
    """A process of its own that tags one image after the other and says each name once its write is acknowledged.

    Forked, because importing everything again takes a process seconds.
    """

    def __init__(self, path: Path, name: str, count: int) -> None:
        reading, writing = os.pipe()
        self.process = os.fork()
        if self.process == 0:  # nothing of pytest may run here
            code = 1
            try:
                store = TagStore(path)
                for number in range(count):
                    store.append({f"{name}-{number}": {"lesion": [[number, number + 1]]}}, name, "manual")
                    os.write(writing, f"{name}-{number}\n".encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        self.acknowledged = open(reading)  # noqa: SIM115 - closed by wait

    def wait(self) -> tuple[int, list[str]]:
        """Its exit code and every name not read before."""
        names = self.acknowledged.read().split()
        self.acknowledged.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1]), names


@contextmanager
def full_disk(limit: int = 10_000) -> Iterator[None]:
    """Files must not grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal_before)


def io_error() -> sqlite3.OperationalError:
    """An error as SQLite reports a disk that cannot be written."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    return error


@pytest.mark.parametrize("value", [False, True, None, [[8, 15]], [[20, 25], [0, 3]]])
def test_what_is_written_is_read(store: TagStore, value: object) -> None:
    store.append({"a": {"lesion": value}}, "ann", "manual")  # type: ignore[dict-item]
    again = TagStore(store.path)
    assert again.tags("a") == {"lesion": value} and again.all_tags() == {"a": {"lesion": value}}
    (event,) = again.history("a")
    assert (event.user, event.provenance, event.undoes) == ("ann", "manual", None) and event.time.endswith("+00:00")
    again.close()


def test_history_grows_and_undo_goes_back_step_by_step(store: TagStore) -> None:
    first = store.append({"a": {"x": True, "y": False}, "b": {"x": True}}, "ann", "import")
    second = store.append({"a": {"x": [[1, 2]]}}, "bob", "mask")
    assert store.undo("a", "cat") == (second, {"x": True})
    third = store.append({"a": {"y": None}}, "bob", "manual")
    with pytest.raises(NothingToUndoError, match=f"not the last, which is {third}"):
        store.undo("a", "cat", action=first)
    assert store.undo("a", "cat", action=third) == (third, {"y": False})
    assert store.undo("a", "cat") == (first, {"x": None, "y": None})
    with pytest.raises(NothingToUndoError):
        store.undo("a", "cat")
    assert store.tags("a") == {"x": None, "y": None} and store.tags("b") == {"x": True}
    assert [(event.class_name, event.value, event.undoes) for event in store.history("a")] == [
        *(("x", True, None), ("y", False, None), ("x", [[1, 2]], None), ("x", True, second)),
        *(("y", None, None), ("y", False, third), ("x", None, first), ("y", None, first)),
    ]
    assert [event.provenance for event in store.history("a", "x")] == ["import", "mask", "import", "manual"]


def test_history_cannot_be_changed(store: TagStore) -> None:
    store.append({"a": {"x": True}}, "ann", "manual")
    connection = sqlite3.connect(store.path)
    for statement in ("UPDATE events SET value = 'false'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_what_belonged_to_an_image_that_was_removed_is_not_brought_back(store: TagStore) -> None:
    store.forget("a", "ann")
    assert store.history("a") == []
    store.append({"a": {"x": [[8, 15]]}}, "ann", "manual")
    store.append({"a": {"x": [[8, 16]], "y": True}}, "ann", "manual")
    store.append({"a": {"x": None}}, "ann", "manual")
    store.set_patients({"a": "p1", "b": "p2"})
    store.forget("a", "bob")
    assert store.patients() == {"b": "p2"}
    assert store.tags("a") == {"x": None, "y": None}
    assert [event.user for event in store.history("a")] == ["ann"] * 4 + ["bob"] * 2
    with pytest.raises(NothingToUndoError):
        store.undo("a", "ann")
    store.append({"a": {"x": False}}, "ann", "manual")
    assert store.undo("a", "ann")[1] == {"x": None}
    with pytest.raises(NothingToUndoError):
        store.undo("a", "ann")


def test_an_action_is_whole_or_not_at_all(store: TagStore) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        store.append({"a": {"x": True}, "b": {"x": False}}, "ann", "guess", {"a": "p1"})  # type: ignore[arg-type]
    assert store.all_tags() == {} and store.patients() == {}
    store.append({"a": {"x": True}}, "ann", "manual")  # and the store goes on working


def test_a_full_disk_is_said_and_stores_nothing(store: TagStore) -> None:
    store.append({"a": {"x": True}}, "ann", "manual")
    many = {f"image{number}": {"x": True} for number in range(1000)}
    with store._connection() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(NoSpaceError, match="full"):
        store.append(many, "ann", "import")
    with pytest.raises(NoSpaceError, match="full"):
        store.set_patients(dict.fromkeys(many, "patient"))
    assert store.all_tags() == {"a": {"x": True}} and store.patients() == {}
    with store._connection() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    store.append(many, "ann", "import")
    assert len(store.all_tags()) == 1001


def test_an_error_of_the_disk_is_a_full_one_where_other_files_find_no_room_either(store: TagStore) -> None:
    """The kernel refuses to let files grow, which SQLite calls an I/O error; as with a quota, it does not say which."""
    store.append({"a": {"x": True}}, "ann", "manual")
    with full_disk(), pytest.raises(NoSpaceError, match="full"):
        for number in range(100):
            store.append({f"image{number}": {"x": True}}, "ann", "manual")
    assert store.append({"b": {"x": True}}, "ann", "manual") == len(store.all_tags())
    with full_disk(limit=10 << 20), pytest.raises(sqlite3.OperationalError), store._transaction():
        raise io_error()


def test_two_hundred_writes_of_four_processes(store: TagStore) -> None:
    writers = [Writer(store.path, f"writer{number}", 50) for number in range(4)]
    results = [process.wait() for process in writers]
    assert [(code, len(names)) for code, names in results] == [(0, 50)] * 4
    assert store.all_tags() == {f"writer{w}-{n}": {"lesion": [[n, n + 1]]} for w in range(4) for n in range(50)}
    actions = [event.action for event in store.current()]
    assert sorted(actions) == list(range(1, 201))


def test_many_threads(store: TagStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.append({f"image{n}": {"x": True}}, "ann", "manual"), range(80)))
    assert len(store.all_tags()) == 80


@pytest.mark.parametrize("acknowledged", [1, 7, 60])
def test_kill_9_loses_nothing_that_was_acknowledged(store: TagStore, acknowledged: int) -> None:
    victim = Writer(store.path, "victim", 1_000_000)
    names = [victim.acknowledged.readline().strip() for _ in range(acknowledged)]
    os.kill(victim.process, signal.SIGKILL)
    code, rest = victim.wait()
    names += rest
    assert code == -signal.SIGKILL and len(names) >= acknowledged
    again = TagStore(store.path)
    assert set(names) <= set(again.all_tags()) and len(again.all_tags()) <= len(names) + 1
    again.append({"after": {"lesion": True}}, "ann", "manual")
    connection = sqlite3.connect(store.path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    again.close()


def test_a_forked_process_opens_the_store_anew(store: TagStore) -> None:
    store.append({"a": {"x": True}}, "parent", "manual")
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            store.append({"b": {"x": True}}, "child", "manual")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    store.append({"c": {"x": True}}, "parent", "manual")
    assert set(store.all_tags()) == {"a", "b", "c"}


def test_writes_are_synchronous_and_logged_ahead(store: TagStore) -> None:
    with store._connection() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_other_files_and_newer_versions_are_refused(tmp_path: Path, store: TagStore) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("this is not a database, but it is long enough to have a header " * 20)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for path, word in ((text, "not a database"), (other, "no tag store"), (store.path, "version 99"), (tmp_path, "unable to open")):
        with pytest.raises(OSError, match=word):
            TagStore(path)


def test_backup_holds_the_history(tmp_path: Path, store: TagStore) -> None:
    store.append({"a": {"x": True}}, "ann", "manual")
    store.append({"a": {"x": None}}, "ann", "manual")
    store.set_patients({"a": "p1"})
    store.back_up(tmp_path / "copy.sqlite")
    with pytest.raises(FileExistsError):
        store.back_up(tmp_path / "copy.sqlite")
    copy = TagStore(tmp_path / "copy.sqlite")
    assert copy.history("a") == store.history("a") and copy.patients() == {"a": "p1"}
    copy.close()


def test_a_backup_that_cannot_be_written_leaves_no_file(tmp_path: Path, store: TagStore) -> None:
    store.append({f"image{number}": {"x": True} for number in range(1000)}, "ann", "manual")
    folder = tmp_path / "backups"
    folder.mkdir()
    with full_disk(), pytest.raises(OSError, match=r"copy\.sqlite cannot be written"):
        store.back_up(folder / "copy.sqlite")
    assert not list(folder.iterdir())
    with pytest.raises(FileNotFoundError):
        store.back_up(folder / "nowhere" / "copy.sqlite")


def test_location(tmp_path: Path) -> None:
    assert tags_file("studies", tmp_path) == Path("studies/.app_cdm/tags.sqlite")
    assert tags_file("studies", tmp_path, Path("chosen")) == Path("chosen")
    by_url = tags_file("http://pacs:8042/dicom-web", tmp_path)
    assert by_url.is_relative_to(tmp_path) and by_url == tags_file("http://me:secret@pacs:8042/dicom-web/", tmp_path)
    assert by_url != tags_file("http://pacs:8042/other", tmp_path)
    assert json.dumps(str(by_url)).count("secret") == 0
