"""`POST /train/...`: checked and started in one step, so that of two clicks at the same moment one is refused."""

from __future__ import annotations

import threading
from typing import Any

from monailabel.endpoints import train
from monailabel.interfaces.app import MONAILabelApp

from lib.trainers.request import OPTIONS

STARTING = threading.Lock()


def start_training(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any]:
    """Starts one trainer in a process of its own.

    Raises:
        SettingsError, BusyError, TooFewTagsError: see `WeakLabel.check`.
    """
    model = arguments["model"]
    return _start(app, {model: arguments["params"] or {}})[model]


def start_all_training(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any]:
    """Starts every trainer, of which there is one; in the host's form.

    Options are for all trainers, or in an object under the name of one, as OHIF sends them.

    Raises:
        SettingsError, BusyError, TooFewTagsError: see `WeakLabel.check`.
    """
    params = arguments["params"] or {}
    shared = {name: value for name, value in params.items() if not isinstance(value, dict)}
    tasks = _start(app, {model: shared | params.get(model, {}) for model in app._trainers})
    return {model: {"result": task, "detail": None} for model, task in tasks.items()}


def _start(app: MONAILabelApp, requests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    # What else viewers send is not for the host, which would take some of it for the environment of the process.
    ignored = {model: sorted(set(options) - set(OPTIONS) - {"model"}) for model, options in requests.items()}
    requests = {model: {name: options[name] for name in OPTIONS if name in options} for model, options in requests.items()}
    with STARTING:
        for model, options in requests.items():
            app._trainers[model].check(options)
        # Queued, because the host's own refusal would say less. A copy: a reply must not meet a dictionary that grows.
        tasks = {model: dict(train.run_model(model, options, enqueue=True)) for model, options in requests.items()}
    return {model: task | ({"ignored_params": ignored[model]} if ignored[model] else {}) for model, task in tasks.items()}
