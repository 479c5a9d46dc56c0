"""Versions: written whole, switched by a pointer, never lost."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lib.models import model_folder
from lib.options import AppOptions
from lib.server import versions as routes
from lib.versions import INDEX, MAX_KEPT, ORIGINAL, POINTER, ModelVersions, VersionError, main, trained_names


def write_model(folder: Path, text: str = "weights", **training: object) -> Path:
    folder.mkdir(parents=True)
    (folder / INDEX).write_text(json.dumps({"training": training}))
    (folder / "net.safetensors").write_text(text)
    return folder


@pytest.fixture
def versions(tmp_path: Path) -> ModelVersions:
    write_model(tmp_path / "model" / "brain", seed=1)
    return ModelVersions(tmp_path / "model", "brain")


def hash_of(number: int) -> str:
    return f"{number:012x}"


def test_a_published_version_is_in_service_and_the_original_stays(versions: ModelVersions, tmp_path: Path) -> None:
    options = AppOptions(versions.model_dir)
    assert model_folder(options) == versions.model_dir / "brain"
    name = versions.publish(write_model(tmp_path / "candidate", "new", held_out={"mean": 0.9}, parent={"model_version": "abc"}), hash_of(1))
    assert versions.current() == name
    assert model_folder(options) == versions.root / name
    assert (versions.root / name / "net.safetensors").read_text() == "new"
    assert (versions.model_dir / "brain" / "net.safetensors").read_text() == "weights"
    assert [(entry["version"], entry["is_current"]) for entry in versions.history()] == [(ORIGINAL, False), (name, True)]
    assert versions.history()[1]["held_out"] == {"mean": 0.9}
    assert versions.history()[1]["parent"] == "abc"


def test_the_same_weights_twice_within_a_second_are_two_versions(versions: ModelVersions, tmp_path: Path) -> None:
    source = write_model(tmp_path / "a")
    names = [versions.publish(source, hash_of(1)) for _ in range(3)]
    assert versions.names() == [ORIGINAL, *names] and len(set(names)) == 3
    assert versions.current() == names[-1]


def test_rollback_goes_back_and_forth(versions: ModelVersions, tmp_path: Path) -> None:
    first = versions.publish(write_model(tmp_path / "a"), hash_of(1))
    assert versions.previous() == ORIGINAL
    versions.activate(ORIGINAL)
    assert versions.folder() == versions.model_dir / "brain"
    with pytest.raises(VersionError, match="no version before 'original'"):
        versions.previous()
    versions.activate(first)
    assert versions.current() == first


def test_the_command_lists_and_goes_back(versions: ModelVersions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [versions.publish(write_model(tmp_path / text, text, tag_set_sha256=text), hash_of(n)) for n, text in enumerate("ab")]
    where = ["--model-dir", str(versions.model_dir)]

    def told(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, *where]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    listed = told()
    assert (listed["model"], listed["current"]) == ("brain", names[1])
    assert [entry["version"] for entry in listed["versions"]] == [ORIGINAL, *names]
    assert [entry.get("tag_set_sha256") for entry in listed["versions"]] == [None, "a", "b"]
    assert told("rollback")["current"] == names[0] == versions.current()
    assert told("rollback", names[1])["current"] == names[1] == versions.current()
    assert main(["rollback", "../brain", *where]) == 1
    assert "unknown version '../brain'" in capsys.readouterr().err
    write_model(versions.model_dir / "heart")
    assert main(where) == 1
    assert "say with --model which model: model/ holds ['brain', 'heart']" in capsys.readouterr().err
    assert told("--model", "heart")["current"] == ORIGINAL
    assert main(["--model", "lung", *where]) == 1


@pytest.mark.parametrize("name", ["nonsense", "../brain", "", "20260101T000000Z-000000000009"])
def test_unknown_versions_are_refused_and_change_nothing(versions: ModelVersions, name: str) -> None:
    with pytest.raises(VersionError, match=r"there are \['original'\]"):
        versions.activate(name)
    assert versions.current() == ORIGINAL


@pytest.mark.parametrize("content", ["", "../../etc", "20260101T000000Z-000000000009", "\x00"])
def test_a_damaged_pointer_falls_back_to_the_original(versions: ModelVersions, content: str) -> None:
    versions.root.mkdir(parents=True)
    (versions.root / POINTER).write_text(content)
    assert versions.folder() == versions.model_dir / "brain"


def test_a_model_without_an_original_is_found_by_its_versions(tmp_path: Path) -> None:
    versions = ModelVersions(tmp_path / "model", "new")
    assert versions.names() == []
    name = versions.publish(write_model(tmp_path / "candidate"), hash_of(1))
    assert trained_names(tmp_path / "model") == ["new"]
    assert model_folder(AppOptions(tmp_path / "model")) == versions.root / name
    assert model_folder(AppOptions(tmp_path / "model", model="other")) is None


def test_what_was_half_written_is_no_version(versions: ModelVersions, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(OSError):
        versions.publish(missing, hash_of(1))
    assert versions.names() == [ORIGINAL]
    assert not list(versions.root.glob(".*"))


def test_the_oldest_versions_are_forgotten_but_never_the_one_in_service(versions: ModelVersions, tmp_path: Path) -> None:
    source = write_model(tmp_path / "candidate")
    first = versions.publish(source, hash_of(1))
    for number in range(2, MAX_KEPT + 5):
        versions.publish(source, hash_of(number))
    assert len(versions.names()) <= MAX_KEPT + 2
    assert first not in versions.names()
    assert versions.current() in versions.names()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"20260101T0000"])
def test_a_pointer_that_is_no_text_falls_back_to_the_original(versions: ModelVersions, content: bytes) -> None:
    versions.root.mkdir(parents=True)
    (versions.root / POINTER).write_bytes(content)
    assert versions.current() == ORIGINAL


def test_simultaneous_rollbacks_leave_a_whole_pointer(versions: ModelVersions, tmp_path: Path) -> None:
    names = [ORIGINAL, *(versions.publish(write_model(tmp_path / text), hash_of(n)) for n, text in enumerate("ab"))]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(versions.activate, names * 40))
    assert versions.current() in names and not list(versions.root.glob(f".{POINTER}*"))


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_pointer_that_cannot_be_written_stays_as_it_was(
    versions: ModelVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    version = versions.publish(write_model(tmp_path / "a"), hash_of(1))

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(OSError, match="disk full"):
            versions.activate(ORIGINAL)
    assert versions.current() == version and not list(versions.root.glob(".*"))


def test_an_empty_version_is_refused(versions: ModelVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = versions.publish(write_model(tmp_path / "a"), hash_of(1))
    monkeypatch.setattr(routes, "app_instance", lambda: SimpleNamespace(options=AppOptions(versions.model_dir)))
    with pytest.raises(VersionError, match="unknown version ''"):
        routes.rollback("")
    assert main(["rollback", "", "--model-dir", str(versions.model_dir)]) == 1
    assert versions.current() == name
    assert routes.rollback(None)["current"] == ORIGINAL


@pytest.mark.parametrize("index", ["[]", "5", '{"training": null}', '{"training": 5}', '{"training": {"parent": "x"}}', "{"])
def test_a_damaged_index_says_nothing_of_its_version(versions: ModelVersions, index: str) -> None:
    (versions.model_dir / "brain" / INDEX).write_text(index)
    (entry,) = versions.history()
    assert {name: value for name, value in entry.items() if name != "parent"} == {"version": ORIGINAL, "is_current": True}
    assert entry.get("parent") is None
