"""Versions of a model: every trained one is kept, and a pointer says which is served.

model/NAME/                      the model that was there first, if any: version `original`
model/.versions/NAME/VERSION/    trained models, each written whole
model/.versions/NAME/current     name of the version in service; `original` where it is missing

`python -m lib.versions --model-dir model` lists them, with `rollback` it goes to an earlier one; a running server follows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from app_cdm.data.writing import write_atomically

FOLDER = ".versions"
POINTER = "current"
INDEX = "model_index.json"
ORIGINAL = "original"
VERSION_NAME = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{12}"
MAX_KEPT = 20

# Held while a version is put in service or forgotten: none is chosen that another thread removes.
_SWITCHING = threading.Lock()


class VersionError(LookupError):
    """There is no such version; the message lists those that there are."""


@dataclass(frozen=True)
class ModelVersions:
    """The versions of one model.

    Attributes:
        model_dir: folder of published models.
        name: of the model.
    """

    model_dir: Path
    name: str

    @property
    def root(self) -> Path:
        """Folder of the trained versions."""
        return self.model_dir / FOLDER / self.name

    def current(self) -> str:
        """The version in service; `original` while none was trained."""
        try:
            name = (self.root / POINTER).read_text().strip()
        except (OSError, ValueError):
            return ORIGINAL
        return name if self._is_complete(name) else ORIGINAL

    def folder(self, version: str | None = None) -> Path:
        """Folder of a version, the one in service by default; it need not exist where that is `original`."""
        version = version or self.current()
        return self.model_dir / self.name if version == ORIGINAL else self.root / version

    def names(self) -> list[str]:
        """Every version there is, the oldest first."""
        trained = sorted(path.name for path in self.root.iterdir() if self._is_complete(path.name)) if self.root.is_dir() else []
        return [ORIGINAL] * (self.model_dir / self.name / INDEX).is_file() + trained

    def history(self) -> list[dict[str, Any]]:
        """What each version says of itself, the oldest first: lineage, tags, held-out scores."""
        current = self.current()
        return [{"version": name, "is_current": name == current, **_record(self.folder(name))} for name in self.names()]

    def publish(self, source: Path, model_version: str) -> str:
        """Copies a model in as a new version and puts it in service; older ones stay, up to twenty.

        Args:
            source: a complete model folder.
            model_version: hash of its weights.

        Returns:
            The name of the version.

        Raises:
            OSError: the disk is full or not writable; the version in service stays.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        while (self.root / (name := f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{model_version}")).exists():
            time.sleep(0.05)  # the same weights once more within one second: versions are told apart by their names
        self._forget_unfinished()
        temporary = self.root / f".{name}.{os.getpid()}"
        try:
            shutil.copytree(source, temporary)
            for path in temporary.rglob("*"):
                if path.is_file():
                    _sync(path)
            os.replace(temporary, self.root / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.activate(name)
        with _SWITCHING:
            self._forget_oldest()
        return name

    def activate(self, version: str) -> None:
        """Puts a version in service: what begins after this call gets it.

        Raises:
            VersionError: there is no such version.
            OSError: the disk refuses; the version in service stays.
        """
        with _SWITCHING:
            if version not in self.names():
                raise VersionError(f"unknown version {version!r} of model {self.name!r}: there are {self.names()}")
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.root / POINTER, version.encode())

    def previous(self) -> str:
        """The version before the one in service.

        Raises:
            VersionError: there is none.
        """
        names, current = self.names(), self.current()
        if current not in names or names.index(current) == 0:
            raise VersionError(f"model {self.name!r} has no version before {current!r}: there are {names}")
        return names[names.index(current) - 1]

    def _is_complete(self, name: str) -> bool:
        return name == ORIGINAL or (re.fullmatch(VERSION_NAME, name) is not None and (self.root / name / INDEX).is_file())

    def _forget_unfinished(self) -> None:
        """Removes what killed processes have left of versions."""
        for path in self.root.glob(".*"):
            process = path.suffix[1:]
            if path.is_dir() and process.isdecimal() and not psutil.pid_exists(int(process)):
                shutil.rmtree(path, ignore_errors=True)

    def _forget_oldest(self) -> None:
        trained = [name for name in self.names() if name not in (ORIGINAL, self.current())]
        for name in trained[: max(0, len(trained) - MAX_KEPT)]:
            # Whoever is killed while removing leaves what is no version any more.
            removed = self.root / f".{name}.{os.getpid()}"
            os.replace(self.root / name, removed)
            shutil.rmtree(removed, ignore_errors=True)


def trained_names(model_dir: Path) -> list[str]:
    """Models of which there is a trained version in service, whether or not there was an original."""
    root = model_dir / FOLDER
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [name for name in names if ModelVersions(model_dir, name).current() != ORIGINAL]


def _record(folder: Path) -> dict[str, Any]:
    try:
        training = _object(_object(json.loads((folder / INDEX).read_text())).get("training"))
    except (OSError, ValueError):
        return {}
    shown = ("tag_set_sha256", "num_images", "num_present_slices", "held_out", "held_out_before", "stages", "seed")
    parent = _object(training.get("parent"))
    return {name: training[name] for name in shown if name in training} | {"parent": parent.get("model_version")}


def _object(value: Any) -> dict[str, Any]:
    """A JSON object as it is; anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def main(arguments: list[str] | None = None) -> int:
    """Lists the versions of a model, or puts an earlier one in service."""
    parser = argparse.ArgumentParser(prog="python -m lib.versions", description="Versions of a model: list them, or go back to one.")
    parser.add_argument("action", nargs="?", choices=["list", "rollback"], default="list")
    parser.add_argument("version", nargs="?", help="with rollback: which one; the one before that in service by default")
    parser.add_argument("--model-dir", type=Path, required=True, help="folder of published models, as the server's")
    parser.add_argument("--model", help="name of the model; needed where there are several")
    options = parser.parse_args(arguments)
    try:
        versions = ModelVersions(options.model_dir, _choose_model(options.model_dir, options.model))
        if options.action == "rollback":
            versions.activate(versions.previous() if options.version is None else options.version)
    except VersionError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 1
    print(json.dumps({"model": versions.name, "current": versions.current(), "versions": versions.history()}, indent=1))
    return 0


def _choose_model(model_dir: Path, name: str | None) -> str:
    """The model of that name, or the only one there is."""
    root = model_dir / FOLDER
    originals = {path.parent.name for path in model_dir.glob(f"*/{INDEX}") if not path.parent.name.startswith(".")}
    found = sorted(
        originals | ({path.name for path in root.iterdir() if ModelVersions(model_dir, path.name).names()} if root.is_dir() else set())
    )
    if name in found or (name is None and len(found) == 1):
        return name or found[0]
    raise VersionError(f"{'say with --model which model' if name is None else f'unknown model {name!r}'}: {model_dir.name}/ holds {found}")


if __name__ == "__main__":
    raise SystemExit(main())
