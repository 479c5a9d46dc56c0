"""`/datastore/dataset`: the labelled images in one ZIP, of which nothing stays on the server."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fastapi.responses import StreamingResponse
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import LabelNotFoundException

CHUNK_BYTES = 1 << 20


def download_dataset(app: MONAILabelApp, arguments: dict[str, Any]) -> StreamingResponse:
    """Images with a final label, these labels and the index, in a file without a name: it is gone however the download ends.

    Raises:
        LabelNotFoundException: no image has a final label.
    """
    pairs, limit = [pair for pair in app.datastore().datalist() if all(map(os.path.isfile, pair.values()))], arguments["limit_cases"] or 0
    if not pairs:
        raise LabelNotFoundException("no image has a final label yet: submit one with PUT /datastore/label")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the response closes it
    with zipfile.ZipFile(file, "w", strict_timestamps=False) as archive:
        for pair in pairs[:limit] if limit > 0 else pairs:
            with suppress(FileNotFoundError):  # removed meanwhile
                for kind, path in pair.items():
                    archive.write(path, f"{kind}/{Path(path).name}")
        archive.writestr("metadata.json", json.dumps(app.datastore().json(), default=str))
    headers = {"Content-Length": str(file.tell()), "Content-Disposition": 'attachment; filename="dataset.zip"'}
    file.seek(0)
    return StreamingResponse(_chunks(file), headers=headers, media_type="application/zip")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
