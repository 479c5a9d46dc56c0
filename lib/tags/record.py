"""One tag as it is stored, sent and written into tables."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from app_cdm.data.tags import TagError, TagValue, parse_tag

Provenance = Literal["manual", "mask", "import"]
PROVENANCES: tuple[str, ...] = get_args(Provenance)

StoredTag = bool | None | list[list[int]]
"""False (absent), True (present somewhere), None (unknown) or inclusive, 0-based slice ranges, in the order they were written."""

TagsByImage = dict[str, dict[str, StoredTag]]

UNKNOWN_USER = "unknown"
MAX_USER_LENGTH = 64
WORDS: dict[bool | None, str] = {False: "absent", True: "present", None: "unknown"}


@dataclass(frozen=True)
class TagEvent:
    """One entry of the history; the newest of an image and class is the tag in force.

    Attributes:
        event: number of the entry, rising.
        action: number of what was done at once: one request may tag several classes and images.
        image: image id.
        class_name: the class.
        value: the tag.
        user: who did it.
        time: when, UTC, ISO 8601.
        provenance: how the tag came about.
        undoes: the action that this one took back, or None. Its own action: the image was removed, and nothing before can be taken back.
    """

    event: int
    action: int
    image: str
    class_name: str
    value: StoredTag
    user: str
    time: str
    provenance: str
    undoes: int | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the class under `class`."""
        values = asdict(self)
        return {("class" if name == "class_name" else name): value for name, value in values.items()}


def read_value(value: object) -> StoredTag:
    """Checks a tag as JSON carries it.

    Raises:
        TagError: it is none of `false`, `true`, `null` and `[[first, last], ...]`, or its ranges are reversed or overlap.
    """
    if isinstance(value, str):
        raise TagError(f"tag {value!r}: must be false, true, null or a list of slice ranges such as [[8, 15]]")
    checked = parse_tag(value)
    return [[first, last] for first, last in value] if isinstance(value, list | tuple) else to_stored(checked)


def to_stored(value: TagValue) -> StoredTag:
    """A checked tag of `app_cdm.data.tags` as it is stored."""
    return [[first, last] for first, last in value] if isinstance(value, tuple) else value


def to_text(value: StoredTag) -> str:
    """A tag as tables write it: `absent`, `present`, `unknown` or ranges such as `8-15;20-20`."""
    return ";".join(f"{first}-{last}" for first, last in value) if isinstance(value, list) else WORDS[value]


def encode(value: StoredTag) -> str:
    """A tag as the database keeps it."""
    return json.dumps(value, separators=(",", ":"))


def check_user(name: object) -> str:
    """Checks who tags.

    Raises:
        TagError: the name is empty, too long, or holds characters that cannot be seen.
    """
    text = name.strip() if isinstance(name, str) else ""
    if not text or len(text) > MAX_USER_LENGTH or any(unicodedata.category(character).startswith("C") for character in text):
        raise TagError(f"user {name!r}: must be 1 to {MAX_USER_LENGTH} printable characters")
    return text
