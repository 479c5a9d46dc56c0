"""Answers that 3D Slicer's module counts on, where the host gives it others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monailabel.endpoints import session, train
from monailabel.interfaces.app import MONAILabelApp

from lib.server.errors import UnknownNameError, UnusableRequestError


def describe_session(app: MONAILabelApp, arguments: dict[str, Any]) -> Any:
    """A session, or an empty object where it has expired: the module then uploads its volume again; on 404 Run fails until a restart.

    Raises:
        UnknownNameError: the image of a session that does not exist is asked for.
    """
    sessions = app.sessions()
    if sessions is not None and sessions.get_session(arguments["session_id"], update_ts=False) is None:
        if arguments["image"]:
            raise UnknownNameError("session", arguments["session_id"], hint="it has expired or never was; create one with PUT /session/")
        return {}
    if sessions is not None and arguments["image"]:
        found = sessions.get_session(arguments["session_id"], update_ts=False)
        if Path(found.image).is_dir():
            raise UnusableRequestError(f"session {arguments['session_id']} has several files, not one that could be sent: leave image out")
    return session.get_session(arguments["session_id"], arguments["update_ts"], arguments["image"])


def stop_training(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Stops a training; the reply has a last line, which the module reads even where the training was stopped before its first."""
    task: dict[str, Any] | None = train.stop()
    return task and {**task, "details": list(task.get("details") or []) or ["stopped before it wrote anything"]}
