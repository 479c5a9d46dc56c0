"""The folder of kept results: bounded, survives a restart, and shows every result whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from app_cdm.data.slices import SliceGeometry
from app_cdm.data.volume import Volume, VolumeError, read_volume, write_mask
from app_cdm.data.writing import write_atomically
from lib.results.errors import NO_SPACE, NoSpaceError
from lib.results.record import ID, Result, Source, from_json, to_json
from lib.server.errors import UnknownNameError

logger = logging.getLogger(__name__)

MAX_RESULTS = 200
MAX_BYTES = 2 << 30
RECORD, DECISION, MASK, MAPS = "result.json", "decision.json", "mask.nii.gz", "maps.npz"
DECISION_KEYS = {"verdict", "user", "time", "reply"}
UNFINISHED = ".new-"
DAMAGED = (FileNotFoundError, BadZipFile, EOFError, KeyError, ValueError, VolumeError, zlib.error)


class ResultStore:
    """Results of one collection of studies.

    Args:
        folder: where they lie, a folder each; made when the first is kept.
        max_results: more are not kept: the oldest that nobody decided on goes first, then the oldest.
        max_bytes: neither are more bytes than this, the newest result excepted.
    """

    def __init__(self, folder: Path, max_results: int = MAX_RESULTS, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_results, self._max_bytes = max_results, max_bytes
        self._adding = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._locks_lock = threading.Lock()

    def remove_unfinished(self) -> None:
        """Removes what a server that was killed was writing; for a server that begins, as long as nobody else keeps results here."""
        for leftover in self._folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def add(
        self,
        result_id: str,
        reply: Mapping[str, Any],
        source: Source,
        mask: Volume,
        maps: Mapping[str, np.ndarray],
        geometry: SliceGeometry,
    ) -> None:
        """Keeps a result; when this returns it is on the disk.

        Args:
            result_id: of `new_id`.
            reply: what clients are told.
            source: the image it was made of.
            mask: `(X, Y, Z)` uint8 in the grid of the image.
            maps: class -> `(S, H, W)` float32 at network resolution.
            geometry: how the maps lie on the image.

        Raises:
            NoSpaceError: the disk is full.
        """
        unfinished = self._folder / f"{UNFINISHED}{result_id}"
        try:
            with _enough_space():
                unfinished.mkdir(parents=True)
                write_mask(mask.array, mask, unfinished / MASK)
                with (unfinished / MAPS).open("wb") as file:
                    np.savez_compressed(file, **{f"map_{number}": values for number, values in enumerate(maps.values())})
                    file.flush()
                    os.fsync(file.fileno())
                record = to_json(reply, source, geometry, maps)
                write_atomically(unfinished / RECORD, json.dumps(record).encode())
                with self._adding:
                    unfinished.replace(self._folder / result_id)
                    self._forget(keep=result_id)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def get(self, result_id: str) -> Result:
        """A result.

        Raises:
            UnknownNameError: it never was, has been forgotten, or is damaged.
        """
        if ID.fullmatch(result_id):
            with suppress(OSError, ValueError, KeyError, TypeError):
                folder = self._folder / result_id
                return from_json(json.loads((folder / RECORD).read_text()), self._decision(folder))
        raise unknown(result_id)

    def results(self) -> list[Result]:
        """Every result, the newest first."""
        found = []
        for folder in reversed(self._folders()):
            with suppress(UnknownNameError):
                found.append(self.get(folder.name))
        return found

    def mask_file(self, result_id: str) -> Path:
        """Where the mask lies: NIfTI, uint8, on the image's grid."""
        return self._folder / result_id / MASK

    def read_mask(self, result_id: str) -> bytes:
        """The mask's file.

        Raises:
            UnknownNameError: the result has been forgotten.
        """
        try:
            return self.mask_file(self.get(result_id).id).read_bytes()
        except FileNotFoundError:
            raise unknown(result_id) from None

    def read_mask_volume(self, result_id: str) -> Volume:
        """The mask: `(X, Y, Z)` on the image's grid.

        Raises:
            UnknownNameError: the result has been forgotten, or its mask is damaged.
        """
        try:
            return read_volume(self.mask_file(self.get(result_id).id))
        except DAMAGED:
            raise unknown(result_id) from None

    def read_map(self, result_id: str, class_name: str) -> np.ndarray:
        """The map of a class: `(X, Y, Z)` float32 in [0, 1] on the image's grid.

        Raises:
            UnknownNameError: there is no such class, the result has been forgotten, or its maps are damaged.
        """
        result = self.get(result_id)
        if class_name not in result.map_names:
            raise UnknownNameError(f"class of result {result_id!r}", class_name, result.map_names)
        try:
            with (self._folder / result.id / MAPS).open("rb") as file, np.load(file) as maps:
                values = maps[f"map_{result.map_names.index(class_name)}"]
        except DAMAGED:
            raise unknown(result_id) from None
        return np.clip(result.geometry.to_volume(torch.from_numpy(values)), 0.0, 1.0)

    @contextmanager
    def deciding(self, result_id: str) -> Iterator[Result]:
        """The result, for the one request at a time that decides on it; it is not forgotten meanwhile.

        Raises:
            UnknownNameError: it never was, or has been forgotten.
        """
        with self._lock(self.get(result_id).id):
            yield self.get(result_id)

    def decide(self, result_id: str, decision: Mapping[str, Any]) -> None:
        """Writes down what was decided; the request must hold `deciding`.

        Raises:
            NoSpaceError: the disk is full.
        """
        with _enough_space():
            write_atomically(self._folder / result_id / DECISION, json.dumps(decision).encode())

    def _lock(self, result_id: str) -> threading.Lock:
        with self._locks_lock:
            return self._locks.setdefault(result_id, threading.Lock())

    def _decision(self, folder: Path) -> dict[str, Any] | None:
        try:
            found: Any = json.loads((folder / DECISION).read_text())
        except FileNotFoundError:
            return None
        if not isinstance(found, dict) or not found.keys() >= DECISION_KEYS:
            raise ValueError(f"{DECISION}: must be an object with {sorted(DECISION_KEYS)}")
        return dict(found)

    def _folders(self) -> list[Path]:
        """Folders of complete results, the oldest first."""
        found = []
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            with suppress(OSError):  # just being removed
                if ID.fullmatch(folder.name):
                    found.append(((folder / RECORD).stat().st_mtime_ns, folder))
        return [folder for _, folder in sorted(found)]

    def _forget(self, keep: str) -> None:
        """Removes results beyond the limits."""
        sizes = {folder: _size(folder) for folder in self._folders()}
        oldest = [folder for folder in sizes if folder.name != keep]
        for folder in sorted(oldest, key=lambda folder: (folder / DECISION).exists()):  # stable: by age within
            if len(sizes) <= self._max_results and sum(sizes.values()) <= self._max_bytes:
                return
            lock = self._lock(folder.name)
            if not lock.acquire(blocking=False):
                continue  # somebody decides on it at this moment
            try:
                logger.info("Result %s is forgotten: there are newer ones", folder.name)
                aside = self._folder / f"{UNFINISHED}{folder.name}"
                folder.replace(aside)
                shutil.rmtree(aside, ignore_errors=True)
                del sizes[folder]
            finally:
                lock.release()
                with self._locks_lock:
                    self._locks.pop(folder.name, None)


def _size(folder: Path) -> int:
    """Bytes in a folder, in which files that are being written come and go."""
    size = 0
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                size += path.stat().st_size
    return size


def results_folder(studies: str, cache_dir: Path) -> Path:
    """Where the results of some studies are kept.

    Args:
        studies: folder or URL, as the server was started with.
        cache_dir: the app's cache folder.
    """
    return cache_dir / "results" / hashlib.sha256(studies.rstrip("/").encode()).hexdigest()[:16]


def unknown(result_id: str) -> UnknownNameError:
    """There is no such result."""
    return UnknownNameError(
        "result", result_id[:64], hint="it never was, or newer ones took its place; run again with POST /results/<model>?image="
    )


@contextmanager
def _enough_space() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise NoSpaceError("the server's disk is full: nothing was stored; make room in its cache folder and try again") from error
        raise
