"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def publish_folder(temporary: Path, final: Path) -> None:
    """Moves a complete folder into place; an existing one is moved aside first and removed after.

    Raises:
        OSError: the move failed; what stood at `final` is put back.
    """
    aside = final.with_name(f".{final.name}.old.{os.getpid()}")
    had_old = final.exists()
    if had_old:
        os.replace(final, aside)
    try:
        os.replace(temporary, final)
    except OSError:
        if had_old:
            os.replace(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)
