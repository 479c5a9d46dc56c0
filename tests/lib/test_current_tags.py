"""Tags in force: those of the history, read once."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.tags import store as store_module
from lib.tags.current import CurrentTags
from lib.tags.record import TagEvent
from lib.tags.store import TagStore

EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["edema", "tumor"]), st.sampled_from([True, False, None])))


@given(EVENTS, st.integers(0, 20))
def test_as_a_query_of_the_whole_history(given_events: list[tuple[str, str, bool | None]], split: int) -> None:
    events = [TagEvent(n, n, image, name, value, "ann", "t", "manual", None) for n, (image, name, value) in enumerate(given_events, 1)]
    current = CurrentTags()
    for seen in (events[:split], events[:split], events):
        current.update(lambda last, seen=seen: [event for event in seen if event.event > last])
    newest = {(event.image, event.class_name): event for event in events}
    assert current.all() == [newest[key] for key in sorted(newest)]
    known = {image: {e.class_name: e.value for e in current.of(image) if e.value is not None} for image in "abc"}
    assert current.known() == {image: by_class for image, by_class in known.items() if by_class}
    assert current.complete(["edema", "tumor"]) == {image for image, by_class in known.items() if len(by_class) == 2}
    assert current.complete([]) == set(current.known())


def test_a_reader_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = TagStore(tmp_path / "tags.sqlite"), TagStore(tmp_path / "tags.sqlite")
    store.append({f"case{number}": {"tumor": True} for number in range(200)}, "ann", "import")
    assert len(store.known()) == 200
    read: list[int] = []
    query = store_module._events

    def counted(connection: sqlite3.Connection, condition: str, values: tuple[object, ...]) -> list[TagEvent]:
        found = query(connection, condition, values)
        read.append(len(found))
        return found

    monkeypatch.setattr(store_module, "_events", counted)
    other.append({"case7": {"tumor": None}, "case8": {"tumor": [[1, 2]]}}, "bob", "manual")
    assert store.tags("case8") == {"tumor": [[1, 2]]} and "case7" not in store.known() and len(store.complete(["tumor"])) == 199
    assert read == [2, 0, 0]
    store.undo("case8", "ann")
    assert store.known()["case8"] == other.tags("case8") == {"tumor": True}
    store.close()
    other.close()


def test_what_was_given_away_does_not_change(tmp_path: Path) -> None:
    store = TagStore(tmp_path / "tags.sqlite")
    store.append({"a": {"tumor": True}}, "ann", "manual")
    known = store.known()
    store.append({"a": {"tumor": False}, "b": {"tumor": True}}, "ann", "manual")
    assert known == {"a": {"tumor": True}} and store.known()["a"] == {"tumor": False}
    store.close()
