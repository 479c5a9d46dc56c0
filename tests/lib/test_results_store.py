"""The folder of results: whole or not at all, bounded, after a kill, on a full disk."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app_cdm.config import PreprocessSettings
from app_cdm.data.slices import SliceGeometry, cut_slices
from app_cdm.data.volume import Volume
from lib.results import store as module
from lib.results.errors import NoSpaceError
from lib.results.record import Source, new_id
from lib.results.store import UNFINISHED, ResultStore
from lib.server.errors import UnknownNameError

SHAPE = (12, 16, 5)


def geometry() -> SliceGeometry:
    array = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    return cut_slices(Volume(array, np.diag([-1.0, -1.2, 4.0, 1.0])), PreprocessSettings(image_size=16)).geometry


def add(store: ResultStore, image: str = "case", noise: int = 0) -> str:
    """A result; `noise` bytes make it large."""
    result_id = new_id()
    reply = {"result": result_id, "image": image, "model": "student", "model_version": "v", "created": "now", "labels": {"tumor": 1}}
    reply["padding"] = "x" * noise
    mask = Volume(np.ones(SHAPE, dtype=np.uint8), np.eye(4))
    maps = {"tumor": np.full((5, 16, 16), 1.5, dtype=np.float32)}
    store.add(result_id, reply, Source("stamp", "digest"), mask, maps, geometry())
    return result_id


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    result_id = add(ResultStore(tmp_path / "r"))
    store = ResultStore(tmp_path / "r")
    found = store.get(result_id)
    assert (found.id, found.image, found.labels, found.source.digest) == (result_id, "case", {"tumor": 1}, "digest")
    expected = geometry()
    for name in ("source_shape", "slicing_axis", "is_reversed", "crop", "resized", "image_size", "slice_spacing_mm"):
        assert getattr(found.geometry, name) == getattr(expected, name), name
    assert np.array_equal(found.geometry.to_display, expected.to_display)
    values = store.read_map(result_id, "tumor")
    assert values.shape == SHAPE and values.dtype == np.float32 and values.max() == 1.0, "kept within [0, 1]"
    with pytest.raises(UnknownNameError, match="tumor"):
        store.read_map(result_id, "liver")


@pytest.mark.parametrize("name", ["", "..", "../" + "0" * 32, "0" * 32, "0" * 31, "A" * 32, ".", "0" * 32 + "\n", "result.json"])
def test_names_that_are_no_results(tmp_path: Path, name: str) -> None:
    store = ResultStore(tmp_path / "r")
    add(store)
    for call in (store.get, store.read_mask, lambda result: store.read_map(result, "tumor")):
        with pytest.raises(UnknownNameError, match="run again"):
            call(name)


def test_the_oldest_undecided_goes_first_and_the_newest_stays(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "r", max_results=3)
    decided = add(store)
    store.decide(decided, {"verdict": "accepted", "user": "ann", "time": "now", "reply": {}})
    open_ones = [add(store) for _ in range(4)]
    assert {result.id for result in store.results()} == {decided, *open_ones[-2:]}
    by_bytes = ResultStore(tmp_path / "r", max_bytes=1)
    last = add(by_bytes, noise=5000)
    assert [result.id for result in by_bytes.results()] == [last]
    assert [path.name for path in (tmp_path / "r").iterdir()] == [last]


def test_what_is_being_decided_is_not_forgotten(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "r", max_results=1)
    first = add(store)
    with store.deciding(first):
        second = add(store)
        assert {result.id for result in store.results()} == {first, second}
    third = add(store)
    assert [result.id for result in store.results()] == [third]


def test_damaged_and_unfinished_folders_are_no_results(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "r")
    damaged = add(store)
    (tmp_path / "r" / damaged / "result.json").write_text("{")
    (tmp_path / "r" / f"{UNFINISHED}{'0' * 32}").mkdir()
    again = ResultStore(tmp_path / "r")
    assert again.results() == []
    assert len(list((tmp_path / "r").glob(f"{UNFINISHED}*"))) == 1, "it may be another process's, which is writing"
    again.remove_unfinished()
    assert not list((tmp_path / "r").glob(f"{UNFINISHED}*"))
    assert add(again) and len(again.results()) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", "{}", '{"verdict": "accepted"}'])
def test_a_damaged_decision_is_an_unknown_result(tmp_path: Path, content: str) -> None:
    store = ResultStore(tmp_path / "r")
    result_id, whole = add(store), add(store)
    (tmp_path / "r" / result_id / "decision.json").write_text(content)
    with pytest.raises(UnknownNameError, match="run again"):
        store.get(result_id)
    assert [result.id for result in store.results()] == [whole]


@pytest.mark.parametrize("size", [None, 0, 1, 10, 60, -30, -1])
def test_damaged_maps_are_an_unknown_result(tmp_path: Path, size: int | None) -> None:
    store = ResultStore(tmp_path / "r")
    result_id = add(store)
    maps = tmp_path / "r" / result_id / "maps.npz"
    content = maps.read_bytes()
    maps.unlink() if size is None else maps.write_bytes(content[:size])
    with pytest.raises(UnknownNameError, match="run again"):
        store.read_map(result_id, "tumor")
    maps.write_bytes(bytes(byte ^ 0xFF if 180 < at < 200 else byte for at, byte in enumerate(content)))
    with pytest.raises(UnknownNameError, match="run again"):
        store.read_map(result_id, "tumor")
    with maps.open("wb") as file:
        np.savez(file, other=np.zeros(3))
    with pytest.raises(UnknownNameError, match="run again"):
        store.read_map(result_id, "tumor")


@pytest.mark.parametrize("size", [None, 0, 30])
def test_a_damaged_mask_is_an_unknown_result(tmp_path: Path, size: int | None) -> None:
    store = ResultStore(tmp_path / "r")
    result_id = add(store)
    assert store.read_mask_volume(result_id).array.all()
    mask = store.mask_file(result_id)
    content = mask.read_bytes()
    mask.unlink() if size is None else mask.write_bytes(content[:size])
    with pytest.raises(UnknownNameError, match="run again"):
        store.read_mask_volume(result_id)


def test_files_that_vanish_while_they_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path / "r")
    first, listed = add(store), Path.iterdir

    def with_vanished(folder: Path) -> Iterator[Path]:
        if folder.name == first:
            yield folder / ".decision.json.0.tmp"
        yield from listed(folder)

    monkeypatch.setattr(Path, "iterdir", with_vanished)
    second = add(store)
    assert {result.id for result in store.results()} == {first, second}


def test_a_full_disk_keeps_nothing_half(tmp_path: Path) -> None:
    """The kernel refuses to let files grow, which ends like a full disk."""
    store = ResultStore(tmp_path / "r")
    kept = add(store)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(NoSpaceError, match="full"):
            add(store, noise=100_000)
        with pytest.raises(NoSpaceError, match="full"):
            store.decide(kept, {"padding": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal_before)
    assert [result.id for result in store.results()] == [kept] and store.get(kept).decision is None
    assert [path.name for path in (tmp_path / "r").iterdir()] == [kept]
    assert not list((tmp_path / "r" / kept).glob("*.tmp"))


def test_other_errors_of_the_disk_are_not_called_full(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        add(ResultStore(tmp_path / "file" / "r"))
    assert caught.value.errno == errno.ENOTDIR


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_kill_at_any_step_leaves_no_half_result(tmp_path: Path, steps: int) -> None:
    child = os.fork()
    if child == 0:  # ends here, by its own kill or at the end of the work
        try:
            for name in ("write_mask", "write_atomically"):
                setattr(module, name, dies_after(steps, getattr(module, name)))
            np.savez_compressed = dies_after(steps, np.savez_compressed)
            add(ResultStore(tmp_path / "r"))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if steps == 3 else -signal.SIGKILL)
    after = ResultStore(tmp_path / "r")
    assert len(after.results()) == (1 if steps == 3 else 0)
    after.remove_unfinished()
    assert not list((tmp_path / "r").glob(f"{UNFINISHED}*"))


CALLS = {"so far": 0}


def dies_after(steps: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; the process is killed as it is called once too often, counted over all such functions."""

    def call(*arguments: Any, **options: Any) -> Any:
        if CALLS["so far"] == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        CALLS["so far"] += 1
        return function(*arguments, **options)

    return call
