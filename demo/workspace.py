"""The folder that a demo makes anew each time: never one that holds something else."""

from __future__ import annotations

from pathlib import Path

DEFAULT = Path(__file__).resolve().parent / "workspace"
MARKER = ".demo-workspace"


class WorkspaceError(Exception):
    """The folder holds files that are not the demo's; the message says what to do."""


def check_workspace(folder: Path) -> None:
    """Refuses a folder of which the demo would remove what is not its own.

    Raises:
        WorkspaceError: it is not empty, and no demo has made it.
    """
    if not folder.exists() or folder.resolve().is_relative_to(DEFAULT.resolve()):
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).is_file()):
        raise WorkspaceError(f"{folder} holds files that no demo has made, and they would be lost: name an empty or a new folder")


def mark_workspace(folder: Path) -> None:
    """Makes the folder, and marks it as one that the demo may remove."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
