"""Where the tags of a study lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

FOLDER = ".app_cdm"
FILE = "tags.sqlite"


def is_url(studies: str) -> bool:
    """Whether the studies are behind a DICOMweb server."""
    return studies.startswith(("http://", "https://"))


def tags_file(studies: str, cache_dir: Path, chosen: Path | None = None) -> Path:
    """The tag store of some studies.

    A folder keeps its tags inside, in `.app_cdm/`, so that they move and are backed up with the images; subfolders, where
    DICOM files are, are left alone. Studies behind a URL have their store in the cache folder, under a digest of the URL
    without user name, password and last slash.

    Args:
        studies: folder or URL, as the server was started with.
        cache_dir: the app's cache folder.
        chosen: `--tags-file`, which overrides both.
    """
    if chosen is not None:
        return chosen
    if not is_url(studies):
        return Path(studies) / FOLDER / FILE
    parts = urlsplit(studies.strip().rstrip("/"))
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return cache_dir / "tags" / hashlib.sha256(address.encode()).hexdigest()[:16] / FILE
