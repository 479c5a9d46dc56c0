"""Sessions: one that was cut short stops neither the clean-up nor a server."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from lib.sessions import META, SafeSessions

EXPIRY_S = 100


def write(folder: Path, meta: str | None, age_s: float) -> None:
    folder.mkdir(parents=True)
    (folder / "image.nii.gz").write_bytes(b"image")
    if meta is not None:
        (folder / META).write_text(meta)
    os.utime(folder, times=(time.time() - age_s,) * 2)


def whole(folder: Path, age_s: float) -> str:
    return json.dumps({"image": str(folder / "image.nii.gz"), "last_access_ts": int(time.time() - age_s), "expiry": EXPIRY_S})


def test_clean_up_takes_what_is_over_and_what_was_cut_short(tmp_path: Path) -> None:
    broken = {
        "none": None,
        "empty": "",
        "half": '{"name": "half", "expi',
        "other": "[1]",
        "lacking": "{}",
        "wrong": '{"last_access_ts": "a"}',
    }
    for name, meta in broken.items():
        write(tmp_path / f"old_{name}", meta, EXPIRY_S + 5)
        write(tmp_path / f"new_{name}", meta, EXPIRY_S / 2)
    write(tmp_path / "over", whole(tmp_path / "over", EXPIRY_S + 5), 0)
    write(tmp_path / "used", whole(tmp_path / "used", EXPIRY_S / 2), EXPIRY_S + 5)
    sessions = SafeSessions(str(tmp_path), EXPIRY_S)
    assert sessions, "the host would take it for switched off"
    assert sessions.remove_expired() == len(broken) + 1
    assert {path.name for path in tmp_path.iterdir()} == {"used", *(f"new_{name}" for name in broken)}
    assert SafeSessions(str(tmp_path / "nothing"), EXPIRY_S).remove_expired() == 0


def test_a_folder_that_cannot_be_removed_does_not_keep_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, None, EXPIRY_S + 5)
    remove = shutil.rmtree

    def refuse(path: Path, **options: bool) -> None:
        if path.name == "b":
            raise PermissionError(path)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert SafeSessions(str(tmp_path), EXPIRY_S).remove_expired() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_killed_write_leaves_the_description_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image.nii.gz"
    image.write_bytes(b"image")
    session_id, _ = SafeSessions(str(tmp_path / "sessions"), EXPIRY_S).add_session(str(image))
    meta = tmp_path / "sessions" / session_id / META
    before = meta.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    again = SafeSessions(str(tmp_path / "sessions"), EXPIRY_S)
    with pytest.raises(OSError, match="disk full"):
        again.get_session(session_id, update_ts=True)
    assert meta.read_bytes() == before
    assert again.get_session(session_id, update_ts=False).name == session_id
