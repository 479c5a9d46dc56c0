"""`/batch/infer` inside the server process: a process of its own would lose labels that are submitted meanwhile."""

from __future__ import annotations

import threading
from typing import Any

from monailabel.interfaces.app import MONAILabelApp

from lib.infers.batch import STOP_KEY
from lib.server.background import Say, ServerTask

BATCH = ServerTask("batch_infer", "/batch/infer")


def start_batch(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs a batch: to its end with `run_sync`, else in the background.

    Raises:
        BusyError: one is running already.
    """
    request = {**arguments["params"], "model": arguments["model"], "images": arguments["images"]}
    if arguments["run_sync"]:
        result: dict[str, Any] = app.batch_infer(request)
        return result

    def work(stop: threading.Event, say: Say) -> dict[str, Any]:
        answers: dict[str, Any] = app.batch_infer({**request, STOP_KEY: stop})
        failed = [image for image, answer in answers.items() if "error" in answer]
        say(f"{len(answers)} images done")
        for image in failed:
            say(f"{image}: {answers[image]['error']}")
        return answers

    return BATCH.start(request, work)


def stop_batch(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Asks the running batch to stop after its current image; None when there is none."""
    return BATCH.stop()
