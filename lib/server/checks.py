"""Checks of names and files that requests carry, before any of the host's code acts on them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

from fastapi import UploadFile

from lib.server.errors import UnusableRequestError

UPLOAD_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg", ".jpeg", ".dcm", ".ima")
STORED_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png")

# A request's JSON must not replace what its URL says: the host would follow it to any file of the server.
RESERVED_PARAMS = frozenset({"model", "image", "images", "image_id", "session", "label", "file", "path"})

MAX_NAME_LENGTH = 200
MAX_TAG_LENGTH = 64


def check_image_id(name: str) -> None:
    """Refuses image ids that could leave a folder or confuse a file system.

    Raises:
        UnusableRequestError: the id is not usable.
    """
    if not is_image_id(name):
        raise UnusableRequestError(
            f"image id {name!r} is not allowed: at most {MAX_NAME_LENGTH} bytes, no slash, backslash or control character, no dot in front"
        )


def is_image_id(text: str) -> bool:
    """Whether a text can be an image id."""
    is_strange = not text.isprintable() and any(unicodedata.category(character).startswith("C") for character in text)
    harmful = is_strange or "/" in text or "\\" in text
    return bool(text) and not text.startswith(".") and not harmful and len(text.encode()) <= MAX_NAME_LENGTH


def check_tag(tag: str) -> None:
    """Refuses label tags, which become folders, unless they are plain names.

    Raises:
        UnusableRequestError: the tag is not usable.
    """
    if not is_tag(tag):
        raise UnusableRequestError(
            f"label tag {tag!r} is not allowed: up to {MAX_TAG_LENGTH} letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )


def is_tag(text: str) -> bool:
    """Whether a text can be a label tag."""
    return len(text) <= MAX_TAG_LENGTH and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None


def check_plain_name(kind: str, name: str) -> None:
    """Refuses names of models, strategies, methods and sessions that are not plain.

    Raises:
        UnusableRequestError: the name is not usable.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,127}", name):
        raise UnusableRequestError(f"{kind} {name!r} is not allowed: up to 128 letters, digits, spaces, '.', '_', '+' and '-'")


def check_json_object(name: str, text: str) -> dict[str, Any]:
    """Parses a form field that must hold a JSON object; empty counts as an empty one.

    Raises:
        UnusableRequestError: it is not JSON, not an object, or what `parse_json` refuses.
    """
    try:
        value = parse_json(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise UnusableRequestError(f"form field {name!r} is not valid JSON ({error}): send an object such as {{}}") from error
    if not isinstance(value, dict):
        raise UnusableRequestError(f"form field {name!r} is a JSON {type(value).__name__}: send an object such as {{}}")
    return value


def parse_json(text: str) -> Any:
    """Parses JSON in which no object names a key twice: which of two values is meant, nobody knows.

    Raises:
        json.JSONDecodeError: it is not JSON.
        UnusableRequestError: a key is named twice, it is nested too deeply, or `check_json_value` refuses it.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
        check_json_value(value)
    except RecursionError as error:
        raise UnusableRequestError("JSON is nested too deeply") from error
    except (json.JSONDecodeError, UnusableRequestError):
        raise
    except ValueError as error:
        raise UnusableRequestError(f"JSON holds a number that is too long ({error})") from error
    return value


def check_json_value(value: Any) -> None:
    """Refuses what Python reads from JSON but JSON in UTF-8 cannot carry: stored, it would spoil the whole index.

    Raises:
        UnusableRequestError: a number is not finite, or a text holds half a character (a lone surrogate).
    """
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise UnusableRequestError(f"JSON in UTF-8 cannot carry this ({error}): send finite numbers and whole characters") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        doubles = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise UnusableRequestError(f"JSON names {doubles} twice in one object: send each once")
    return values


def check_reserved(params: dict[str, Any]) -> None:
    """Refuses parameters that would override the URL.

    Raises:
        UnusableRequestError: there is one.
    """
    reserved = sorted(RESERVED_PARAMS & set(params))
    if reserved:
        raise UnusableRequestError(f"params must not hold {reserved}: name model and image in the URL")


def check_upload(upload: UploadFile, suffixes: tuple[str, ...]) -> str:
    """Reduces an uploaded file's name to its last part and checks that it is a kind of file that can be read.

    Returns:
        The name without its suffix, safe as an image id.

    Raises:
        UnusableRequestError: the name or the kind is not usable, or the file is empty.
    """
    name = PurePosixPath((upload.filename or "image.nii.gz").replace("\\", "/")).name
    suffix = next((item for item in suffixes if name.lower().endswith(item)), None)
    if suffix is None:
        raise UnusableRequestError(f"file {name!r}: its name must end in one of {list(suffixes)}")
    if upload.size == 0:
        raise UnusableRequestError(f"file {name!r} is empty: send the image itself")
    stem = name[: -len(suffix)] or "image"
    check_image_id(stem)
    # The host takes everything after the first dot of a file's name for its suffix; only the real one may remain.
    upload.filename = f"{stem.replace('.', '_')}{suffix}"
    return stem
