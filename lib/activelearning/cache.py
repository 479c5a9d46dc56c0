"""Doubts on the disk, so that a restart does not begin again: a file for each model version."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from lib.activelearning.doubt import Doubts

logger = logging.getLogger(__name__)

MAX_VERSIONS = 3
# Image and fingerprint of its files.
Key = tuple[str, str]


class DoubtCache:
    """Doubts of one model version. A damaged line is left out; a disk that cannot be written costs the next start, nothing else.

    Args:
        folder: of one collection of studies.
        model_version: of the weights; the files of the newest few are kept.
    """

    def __init__(self, folder: Path, model_version: str) -> None:
        self._path = folder / f"{model_version}.jsonl"
        self._doubts: dict[Key, Doubts] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            self._forget_oldest(folder)
            lines = self._path.read_text().splitlines()
        except OSError as error:
            logger.warning("Doubts are kept in memory only: %s", error)
            lines = []
        for line in lines:
            self._read(line)

    def get(self, key: Key) -> Doubts | None:
        """The doubts of an image as its files are now; None where they are not known."""
        return self._doubts.get(key)

    def put(self, key: Key, doubts: Doubts) -> None:
        """Remembers the doubts of an image."""
        self._doubts[key] = doubts
        try:
            with self._path.open("a") as file:
                file.write(json.dumps([*key, doubts]) + "\n")
        except OSError as error:
            logger.warning("Doubts of %s are kept in memory only: %s", key[0], error)

    def _read(self, line: str) -> None:
        try:
            image, fingerprint, doubts = json.loads(line)
            self._doubts[str(image), str(fingerprint)] = {str(name): float(value) for name, value in doubts.items()}
        except (ValueError, TypeError, AttributeError):
            logger.info("%s: a line is damaged; its image is scored again", self._path.name)

    @staticmethod
    def _forget_oldest(folder: Path) -> None:
        files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MAX_VERSIONS]:
            path.unlink(missing_ok=True)


def doubts_folder(studies: str, cache_dir: Path) -> Path:
    """Where the doubts of some studies are kept.

    Args:
        studies: folder or URL, as the server was started with.
        cache_dir: the app's cache folder.
    """
    return cache_dir / "doubts" / hashlib.sha256(studies.rstrip("/").encode()).hexdigest()[:16]
