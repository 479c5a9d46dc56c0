"""Fewer images a call where memory runs out, and what a client hears where not even one slice fits."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from fastapi import Request

from app_cdm.saliency.batches import BatchLimit
from lib.server.errors import answer_error


def in_memory_of(images: int, tried: list[int], batch_images: int) -> str:
    tried.append(batch_images)
    if batch_images > images:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return f"made with {batch_images}"


def test_call_is_repeated_with_half_as_many_images_and_those_after_it_begin_there(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    tried: list[int] = []
    batch = BatchLimit(64)
    assert batch.run(lambda images: in_memory_of(64, tried, images)) == "made with 64"
    assert batch.run(lambda images: in_memory_of(20, tried, images)) == "made with 16"
    assert len(emptied) == 2
    assert batch.run(lambda images: in_memory_of(64, tried, images)) == "made with 16"
    assert batch.run(lambda images: in_memory_of(1, tried, images)) == "made with 1"
    assert tried == [64, 64, 32, 16, 16, 16, 8, 4, 2, 1]


def test_what_does_not_fit_alone_is_an_error_and_other_errors_are_not_tried_again() -> None:
    tried: list[int] = []
    with pytest.raises(torch.OutOfMemoryError):
        BatchLimit(7).run(lambda images: in_memory_of(0, tried, images))
    assert tried == [7, 3, 1]

    def fail(images: int) -> None:
        tried.append(images)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        BatchLimit(5).run(fail)
    assert tried == [7, 3, 1, 5]


def test_client_hears_503_and_what_to_do() -> None:
    request = Request({"type": "http", "method": "POST", "path": "/infer/student", "headers": [], "query_string": b"", "server": ("a", 1)})
    reply = asyncio.run(answer_error(request, torch.OutOfMemoryError("CUDA out of memory")))
    assert reply.status_code == 503
    assert "too little free memory for a single slice: send device 'cpu'" in json.loads(bytes(reply.body))["detail"]
