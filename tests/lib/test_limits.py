"""Uploads that find no room in the temporary folder are refused before anything of them is kept."""

from __future__ import annotations

import asyncio
import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from lib.options import is_loopback
from lib.server import limits
from lib.server.limits import UploadLimit

FREE = 1000
FORM, JSON = b"multipart/form-data; boundary=x", b"application/json"


def put(length: int, kind: bytes) -> tuple[int, str, list[int]]:
    """Status and detail of the answer to a request, and how many bytes the application behind got to see."""
    seen: list[int] = []
    sent: list[dict[str, Any]] = []
    body = [bytes(length // 2), bytes(length - length // 2)]

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            seen.append(len(message["body"]))
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"detail": ""}'})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body.pop(0), "more_body": bool(body)}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", str(length).encode()), (b"content-type", kind)]
    scope = {"type": "http", "method": "PUT", "path": "/datastore/image", "headers": headers}
    asyncio.run(UploadLimit(application, 4 * FREE)(scope, receive, send))
    assert not body, "a client that is cut off while it sends never sees the answer"
    return sent[0]["status"], json.loads(sent[1]["body"])["detail"], seen


@pytest.fixture(autouse=True)
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=FREE))


def test_a_form_is_refused_where_its_file_and_the_copy_of_it_find_no_room() -> None:
    status, detail, seen = put(FREE // 2 + 1, FORM)
    assert (status, seen) == (507, []) and "full" in detail
    assert put(FREE // 2, FORM) == (200, "", [FREE // 4, FREE // 4])


def test_what_is_kept_in_memory_needs_no_room() -> None:
    assert put(2 * FREE, JSON)[0] == 200


def test_what_is_too_large_is_so_whatever_the_room() -> None:
    for kind in (FORM, JSON):
        status, detail, seen = put(4 * FREE + 1, kind)
        assert (status, seen) == (413, []) and "--upload-limit-mb" in detail


def test_json_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes many times its length while it is parsed."""
    monkeypatch.setattr(limits, "MAX_JSON_BYTES", FREE)
    assert put(FREE, JSON)[0] == 200
    status, detail, seen = put(FREE + 1, JSON)
    assert (status, seen) == (413, []) and "in parts" in detail
    assert put(FREE // 2, FORM)[0] == 200


@pytest.mark.parametrize(
    ("host", "is_this_machine"),
    [
        *((name, True) for name in ("127.0.0.1", "127.0.0.2", "127.1", "::1", "localhost", "LOCALHOST")),
        *((name, False) for name in ("", "0.0.0.0", "::", "192.168.0.1", "labels.example.org", "127.0.0.1.example.org")),
    ],
)
def test_which_addresses_are_this_machine(host: str, is_this_machine: bool) -> None:
    assert is_loopback(host) is is_this_machine
