"""The stock routes again: checked first, run in worker threads, cleaned up after."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import anyio.to_thread
from fastapi import Depends, Request
from fastapi.background import BackgroundTasks
from fastapi.encoders import jsonable_encoder
from fastapi.params import Form
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, info, logs, model, scoring, session, train, wsi_infer
from monailabel.interfaces.utils.app import app_instance

from lib.datastore import FolderDatastore
from lib.dicomweb.datastore import PacsDatastore
from lib.index import enough_space
from lib.plain import plain
from lib.server.batch import start_batch, stop_batch
from lib.server.checks import check_json_value
from lib.server.dataset import download_dataset
from lib.server.errors import UnusableRequestError
from lib.server.infer import run_inference
from lib.server.rules import RULES
from lib.server.scoring import start_all_scoring, start_scoring, stop_scoring
from lib.server.slicer import describe_session, stop_training
from lib.server.training import start_all_training, start_training

logger = logging.getLogger(__name__)

# Not here: `proxy` and `ohif`, which `lib.server` has again as a whole, and `login`.
STOCK_MODULES = (activelearning, batch_infer, datastore, infer, info, logs, model, scoring, session, train, wsi_infer)

# These may take long; they wait for a turn of their own, so that they never use up the threads of quick routes.
LONG_ROUTES = frozenset(
    {"infer.api_run_inference", "batch_infer.api_run", "train.api_run", "train.api_run_model", "scoring.api_run", "scoring.api_run_method"}
)

MAX_TRIES = 20

# Arguments that become paths or keys; a route that takes one must have a rule.
TAKES_NAMES = frozenset({"image", "id", "label", "tag", "model", "strategy", "method", "session_id", "file", "files"})

REPLACED: dict[str, Callable[..., Any]] = {
    "batch_infer.api_run": start_batch,
    "batch_infer.api_stop": stop_batch,
    "datastore.api_download_dataset": download_dataset,
    "infer.api_run_inference": run_inference,
    "scoring.api_run": start_all_scoring,
    "scoring.api_run_method": start_scoring,
    "scoring.api_stop": stop_scoring,
    "session.api_get_session": describe_session,
    "train.api_run": start_all_training,
    "train.api_run_model": start_training,
    "train.api_stop": stop_training,
}


def checked_routes(turns: anyio.CapacityLimiter) -> list[APIRoute]:
    """The stock routes with the same paths and arguments, to be placed before the originals.

    The originals are `async def` around blocking code: during an inference the whole server would hang.

    Args:
        turns: long requests that may hold a thread at once; more wait without one.
    """
    again = APIRoute("/reload", reload, methods=["POST"], include_in_schema=False)
    return [again, *(checked_route(module, route, turns) for module, route in stock_routes())]


def stock_routes() -> Iterable[tuple[ModuleType, APIRoute]]:
    """Every route of MONAI Label that acts on the app."""
    for module in STOCK_MODULES:
        for route in module.router.routes:
            if isinstance(route, APIRoute):
                yield module, route


def checked_route(module: ModuleType, route: APIRoute, turns: anyio.CapacityLimiter) -> APIRoute:
    """One stock route, checked and moved to a worker thread.

    Raises:
        LookupError: the route takes a name, and nobody has decided which are allowed.
    """
    key = f"{module.__name__.rsplit('.', 1)[-1]}.{route.endpoint.__name__}"
    if key not in RULES and TAKES_NAMES & set(inspect.signature(route.endpoint).parameters):
        raise LookupError(f"{key} takes a name but has no rule: this version of MONAI Label is not known to be safe")
    limiter = turns if key in LONG_ROUTES else None

    @functools.wraps(route.endpoint)
    async def endpoint(**arguments: Any) -> Any:
        call = functools.partial(answer, key, route.endpoint, arguments)
        return await anyio.to_thread.run_sync(call, limiter=limiter)

    is_form = any(isinstance(field.field_info, Form) for field in route.dependant.body_params)
    # Left out of the schema because the original, behind it, describes the same route.
    return APIRoute(
        f"{settings.MONAI_LABEL_API_STR}{route.path}",
        endpoint,
        methods=route.methods,
        name=route.name,
        include_in_schema=False,
        dependencies=[Depends(refuse_json)] if is_form else None,
    )


def refuse_json(request: Request) -> None:
    """A body of JSON where a form is read would be passed over without a word.

    Raises:
        UnusableRequestError: there is one.
    """
    if "json" in request.headers.get("content-type", "").lower():
        raise UnusableRequestError(f"{request.method} {request.url.path} reads a form, not JSON: send its fields as multipart/form-data")


def answer(key: str, endpoint: Callable[..., Any], arguments: dict[str, Any]) -> Response:
    """Checks the arguments and runs the stock endpoint, or our own in its place; called in a worker thread."""
    app = app_instance()
    try:
        check_json_value({name: value for name, value in arguments.items() if isinstance(value, str | dict)})
        if key in RULES:
            RULES[key](app, arguments)
        with enough_space():
            result = REPLACED[key](app, arguments) if key in REPLACED else asyncio.run(endpoint(**arguments))
        return as_response(key, result)
    except BaseException:
        # FastAPI drops background tasks when a request fails; here they remove uploaded files.
        run_now(arguments.get("background_tasks"))
        raise


def as_response(key: str, result: Any) -> Response:
    """What an endpoint returned as a response; made in the worker thread, because a long list of images takes long to write."""
    if isinstance(result, Response):
        return result
    if key == "info.api_app_info":
        # Slicer takes a top-level "config" for a server too old to talk to.
        result = {name: value for name, value in plain(result).items() if name != "config"}
    if key != "datastore.api_datastore":  # which is plain, and as long as there are images
        result = _encoded(result)
    return JSONResponse(result)


def _encoded(result: Any) -> Any:
    """Plain values of a result; the lines of a task that runs may grow meanwhile, which is not worth an error."""
    for _ in range(MAX_TRIES):
        try:
            return jsonable_encoder(result)
        except RuntimeError:
            logger.debug("what is told of a running task changed while it was read")
    return jsonable_encoder(result)


def reload() -> dict[str, Any]:
    """Looks at the studies again; the host's own would make a second app beside the first, with a datastore each."""
    studies = app_instance().datastore()
    if isinstance(studies, FolderDatastore | PacsDatastore):
        studies.rescan()
    return {}


def run_now(tasks: BackgroundTasks | None) -> None:
    """Runs clean-up that would otherwise be lost."""
    for task in tasks.tasks if tasks else []:
        task.func(*task.args, **task.kwargs)
