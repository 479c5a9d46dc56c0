"""The programs that end-to-end tests need beside Python packages: where they are, or which Debian package brings them."""

from __future__ import annotations

import shutil

from demo.orthanc import OrthancError, find_orthanc

# Chromium without a display, a GPU or anything that it would like to fetch.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def find_chromium() -> str | None:
    """Path of a Chromium, if one is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing_pacs() -> str:
    """Why tests with a PACS cannot run; empty if they can."""
    try:
        find_orthanc()
    except OrthancError as error:
        return str(error)
    return ""


def missing_browser() -> str:
    """Why tests with a browser cannot run; empty if they can."""
    return "" if find_chromium() else "Debian package chromium not found; install with: sudo apt-get install chromium"
