"""Routes for results that are kept, under `/results`."""

from __future__ import annotations

import functools
import json
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from app_cdm.data.writing import map_as_nifti
from lib.results.decide import Judge
from lib.results.export import DicomExport
from lib.results.make import make_result
from lib.results.store import ResultStore
from lib.segmentations import CODES_FILE
from lib.server.rules import RULES
from lib.server.tags import parse_object
from lib.server.users import user_of

READER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
CLASS = Query(default=None, alias="class")
NIFTI, DICOM = "application/gzip", "application/dicom"


async def params_body(request: Request) -> dict[str, Any]:
    """The request's body: a JSON object, or nothing."""
    body = await request.body()
    return await anyio.to_thread.run_sync(parse_object, body) if body.strip() else {}


PARAMS = Depends(params_body)


def result_router(turns: anyio.CapacityLimiter) -> APIRouter:
    """The routes; plain functions run in worker threads of their own.

    Args:
        turns: those of `/infer`, in which new results are made.
    """
    router = APIRouter(prefix=f"{settings.MONAI_LABEL_API_STR}/results", tags=["Results"])

    @router.post("/{task}")
    async def run(task: str, image: str = "", params: dict[str, Any] = PARAMS, login: User = READER) -> dict[str, Any]:
        """Segments an image of the datastore and keeps mask and maps; parameters as of `/infer`."""
        return await anyio.to_thread.run_sync(functools.partial(make, task, image, params), limiter=turns)

    router.add_api_route("/", list_results, methods=["GET"])
    router.add_api_route("/{result}", show, methods=["GET"])
    router.add_api_route("/{result}/mask", mask, methods=["GET"], response_class=Response)
    router.add_api_route("/{result}/map/{class_name}", map_of_class, methods=["GET"], response_class=Response)
    router.add_api_route("/{result}/accept", accept, methods=["POST"])
    router.add_api_route("/{result}/reject", reject, methods=["POST"])
    router.add_api_route("/{result}/dicom", dicom, methods=["POST"], response_class=Response)
    return router


def make(task: str, image: str, params: dict[str, Any]) -> dict[str, Any]:
    """A new result; called in a worker thread."""
    app = app_instance()
    arguments = {"model": task, "image": image, "params": json.dumps(params), "session_id": "", "file": None}
    RULES["infer.api_run_inference"](app, arguments)
    return make_result(app._infers, {**params, "model": task, "image": image}, app.datastore(), store())


def list_results(login: User = READER) -> dict[str, Any]:
    """What is kept, the newest first."""
    return {"results": [result.entry for result in store().results()]}


def show(result: str, login: User = READER) -> dict[str, Any]:
    """One result."""
    return store().get(result).shown


def mask(result: str, login: User = READER) -> Response:
    """The mask, NIfTI of uint8 on the image's grid."""
    return download(store().read_mask(result), NIFTI, f"mask_{result}.nii.gz")


def map_of_class(result: str, class_name: str, login: User = READER) -> Response:
    """The map of one class, NIfTI of float32 in [0, 1] on the image's grid."""
    values = store().read_map(result, class_name)
    grid = store().read_mask_volume(result)
    return download(map_as_nifti(values, grid), NIFTI, f"map_{result}.nii.gz")


def accept(result: str, user: str | None = None, login: User = ANNOTATOR) -> dict[str, Any]:
    """Stores the mask as the image's final label, and the tags that follow from it."""
    return judge().accept(result, user_of(login, user))


def reject(result: str, user: str | None = None, login: User = ANNOTATOR) -> dict[str, Any]:
    """Tags the result's classes as absent."""
    return judge().reject(result, user_of(login, user))


def dicom(result: str, kind: str = "seg", class_name: str | None = CLASS, login: User = READER) -> Response:
    """The mask as DICOM SEG, or the map of one class as DICOM Parametric Map."""
    app = app_instance()
    export = DicomExport(app.results, app.datastore(), app.options.model_dir / CODES_FILE)
    return download(export.export(result, kind, class_name), DICOM, f"{kind}_{result}.dcm")


def download(content: bytes, kind: str, name: str) -> Response:
    """A file to be saved."""
    return Response(content, media_type=kind, headers={"Content-Disposition": f"attachment; filename={name}"})


def store() -> ResultStore:
    """The running app's results."""
    found: ResultStore = app_instance().results
    return found


def judge() -> Judge:
    """Decides on the running app's results."""
    app = app_instance()
    return Judge(app.results, app.datastore(), app.tags)
