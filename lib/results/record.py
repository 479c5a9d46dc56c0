"""One kept result as its files hold it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from app_cdm.data.slices import SliceGeometry

VERSION = 1
ID = re.compile(r"[0-9a-f]{32}")
ACCEPTED, REJECTED = "accepted", "rejected"
SHOWN_IN_LIST = ("result", "image", "model", "model_version", "created")


@dataclass(frozen=True)
class Source:
    """Which image a result was made of.

    Attributes:
        stamp: size and time of its files; equal means unchanged.
        digest: of its voxels and geometry, for files that were only copied or fetched again.
    """

    stamp: str
    digest: str


@dataclass(frozen=True)
class Result:
    """A result that lies on the disk.

    Attributes:
        reply: what clients are told.
        source: the image that it was made of.
        geometry: how its maps lie on the image.
        map_names: classes that it has maps of, in the order of their file.
        decision: what was decided, by whom and when, and the reply that was given; None while it is open.
    """

    reply: dict[str, Any]
    source: Source
    geometry: SliceGeometry
    map_names: tuple[str, ...]
    decision: dict[str, Any] | None

    @property
    def id(self) -> str:
        """Its name, which cannot be guessed."""
        return str(self.reply["result"])

    @property
    def image(self) -> str:
        """The image's id."""
        return str(self.reply["image"])

    @property
    def labels(self) -> dict[str, int]:
        """Class -> value in the mask, of the classes that were looked for."""
        return dict(self.reply["labels"])

    @property
    def shown(self) -> dict[str, Any]:
        """The reply, with what was decided since."""
        decision = {key: self.decision[key] for key in ("verdict", "user", "time")} if self.decision else None
        return self.reply | {"decision": decision}

    @property
    def entry(self) -> dict[str, Any]:
        """The reply's beginning, for a list."""
        return {key: self.reply[key] for key in SHOWN_IN_LIST} | {"decision": self.decision["verdict"] if self.decision else None}


def new_id() -> str:
    """An id that nobody guesses: 128 random bits."""
    return secrets.token_hex(16)


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_json(reply: Mapping[str, Any], source: Source, geometry: SliceGeometry, map_names: Iterable[str]) -> dict[str, Any]:
    """What the file of a new result holds."""
    return {
        "version": VERSION,
        "reply": dict(reply),
        "map_names": list(map_names),
        "source": {"stamp": source.stamp, "digest": source.digest},
        "geometry": {
            "source_shape": list(geometry.source_shape),
            "to_display": np.asarray(geometry.to_display, dtype=float).tolist(),
            "slicing_axis": geometry.slicing_axis,
            "is_reversed": geometry.is_reversed,
            "crop": list(geometry.crop),
            "resized": list(geometry.resized),
            "image_size": geometry.image_size,
            "slice_spacing_mm": geometry.slice_spacing_mm,
        },
    }


def from_json(values: Mapping[str, Any], decision: dict[str, Any] | None) -> Result:
    """A result from its file.

    Raises:
        KeyError, TypeError, ValueError: the file is not one of this version.
    """
    if values["version"] != VERSION:
        raise ValueError(f"version {values['version']!r}")
    shape = values["geometry"]
    geometry = SliceGeometry(
        source_shape=tuple(shape["source_shape"]),
        to_display=np.asarray(shape["to_display"], dtype=float),
        slicing_axis=int(shape["slicing_axis"]),
        is_reversed=bool(shape["is_reversed"]),
        crop=tuple(shape["crop"]),
        resized=tuple(shape["resized"]),
        image_size=int(shape["image_size"]),
        slice_spacing_mm=float(shape["slice_spacing_mm"]),
    )
    return Result(dict(values["reply"]), Source(**values["source"]), geometry, tuple(values["map_names"]), decision)
