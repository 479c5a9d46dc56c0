"""`/scoring` inside the server process: no process for each click."""

from __future__ import annotations

from functools import partial
from typing import Any

from monailabel.interfaces.app import MONAILabelApp

from lib.server.background import ServerTask

SCORING = ServerTask("scoring", "/scoring/")


def start_scoring(app: MONAILabelApp, arguments: dict[str, Any]) -> Any:
    """Runs one scoring method: to its end with `run_sync`, and then gives its result; else in the background.

    Raises:
        BusyError: one is running already.
    """
    method = arguments["method"]
    work = partial(app._scoring_methods[method].score, app.datastore())
    task = SCORING.start({**(arguments["params"] or {}), "method": method}, work, wait=bool(arguments["run_sync"]))
    return task.get("result", task) if arguments["run_sync"] else task


def start_all_scoring(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs every scoring method, of which there is one; in the host's form.

    Raises:
        BusyError: one is running already.
    """
    return {method: {"result": start_scoring(app, {**arguments, "method": method}), "detail": None} for method in app._scoring_methods}


def stop_scoring(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Asks the running task to stop after its current image; None when there is none."""
    return SCORING.stop()
