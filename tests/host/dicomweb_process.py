"""A small DICOMweb server in this process: what the label server asks of a PACS, over real HTTP."""

from __future__ import annotations

import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pydicom

PREFIX = "/dicom-web"
SERIES_FIELDS = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "SeriesDescription")


class DicomWeb:
    """QIDO by series, of all studies or one, WADO of a series and its metadata, STOW.

    Args:
        folder: DICOM files to begin with.
        most: series in one answer, the others by offset; without it, all are in the first and offsets mean nothing.
        counts: whether it says how many instances a series has.
    """

    def __init__(self, folder: Path, most: int | None = None, counts: bool = True) -> None:
        self.most, self.counts, self.num_searches = most, counts, 0
        self.withheld = 0  # of the instances of a series, when it is fetched
        self.broken: set[str] = set()  # series that cannot be fetched: answered with 500
        self.instances = self.read(folder, "IM*")
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{PREFIX}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @staticmethod
    def read(folder: Path, pattern: str) -> list[pydicom.Dataset]:
        """The DICOM files of a folder."""
        return [pydicom.dcmread(path) for path in sorted(folder.rglob(pattern))]

    def of_series(self, uid: str) -> list[pydicom.Dataset]:
        return [item for item in self.instances if item.SeriesInstanceUID == uid]

    def series(self, filters: dict[str, str]) -> list[pydicom.Dataset]:
        first = {item.SeriesInstanceUID: item for item in reversed(self.instances)}
        return [item for item in first.values() if all(str(item.get(key, "")) == value for key, value in filters.items())]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    store: DicomWeb

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(PREFIX)
        search = re.fullmatch(r"(?:/studies/([0-9.]+))?/series", path)
        if search:
            filters = {key: value for key, value in parse_qsl(parts.query) if key in SERIES_FIELDS}
            filters |= {"StudyInstanceUID": search.group(1)} if search.group(1) else {}
            found = self.store.series(filters)
            self.store.num_searches += 1
            if self.store.most is not None:
                offset = int(dict(parse_qsl(parts.query)).get("offset", 0))
                found = found[offset : offset + self.store.most]
            self._json([self._described(item) for item in found])
            return
        match = re.fullmatch(r"/studies/([0-9.]+)/series/([0-9.]+)(/metadata)?", path)
        instances = self.store.of_series(match.group(2)) if match else []
        if not match or not instances:
            self.send_error(404)
        elif match.group(2) in self.store.broken:
            self.send_error(500)
        elif match.group(3):
            self._json([item.to_json_dict() for item in instances])
        else:
            self._multipart(instances[: len(instances) - self.store.withheld])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"]).group(1)  # type: ignore[union-attr]
        for part in body.split(f"--{boundary}".encode())[1:-1]:
            content = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            item = pydicom.dcmread(io.BytesIO(content))
            self.store.instances.append(item)
        url = f"{self.store.url}/studies/{item.StudyInstanceUID}/series/{item.SeriesInstanceUID}/instances/{item.SOPInstanceUID}"
        self._json({"00081190": {"vr": "UR", "Value": [url]}})

    def _described(self, item: pydicom.Dataset) -> dict[str, Any]:
        count = len(self.store.of_series(item.SeriesInstanceUID))
        counted = {"NumberOfSeriesRelatedInstances": {"vr": "IS", "Value": [count]}} if self.store.counts else {}
        return {key: item[key].to_json_dict(None, 0) for key in SERIES_FIELDS if key in item} | counted

    def _json(self, value: Any) -> None:
        value = [{_tag(key): item for key, item in entry.items()} for entry in value] if isinstance(value, list) else value
        self._send(json.dumps(value).encode(), "application/dicom+json")

    def _multipart(self, instances: list[pydicom.Dataset]) -> None:
        body = b""
        for item in instances:
            content = io.BytesIO()
            pydicom.dcmwrite(content, item, write_like_original=False)
            body += b"--part\r\nContent-Type: application/dicom\r\n\r\n" + content.getvalue() + b"\r\n"
        self._send(body + b"--part--\r\n", 'multipart/related; type="application/dicom"; boundary=part')

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _tag(key: str) -> str:
    """Keyword or tag as DICOM JSON writes it."""
    return key if re.fullmatch(r"[0-9A-F]{8}", key) else f"{pydicom.datadict.tag_for_keyword(key):08X}"
