"""Errors as JSON: what went wrong and what to do, with a status that tells the client's fault from the server's."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus

import requests
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

from app_cdm.config import SettingsError
from app_cdm.data.dicom_codes import CodesError
from app_cdm.data.tags import TagError
from app_cdm.data.volume import VolumeError
from app_cdm.training.held_out import TooFewTagsError
from lib.busy import BusyError
from lib.models import ModelMissingError
from lib.results.errors import DISK_IS_FULL, NO_SPACE, NoSpaceError, ResultConflictError
from lib.tags.store import NothingToUndoError
from lib.versions import VersionError

logger = logging.getLogger(__name__)

LIST_IMAGES = "GET /datastore/?output=all lists what there is"


class UnknownNameError(LookupError):
    """A model, image, tag, strategy or session that does not exist.

    Args:
        kind: what was looked up.
        name: the name given.
        known: names that do exist.
        hint: what to do, where the names that exist are too many or nobody's business.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str] | None = None, hint: str = "") -> None:
        names = "there are none" if known is not None and not list(known) else f"there are {sorted(known or [])}"
        super().__init__(f"unknown {kind} {name!r}: {hint or names}")


class UnusableRequestError(ValueError):
    """A request that cannot be followed; the message says what to send instead."""


# What is wrong with one image, or with what comes of it: work on many goes on with the next one.
OF_ONE_IMAGE = (VolumeError, LookupError, ImageNotFoundException, OSError, SettingsError, torch.OutOfMemoryError)

STATUS_OF: dict[type[Exception], HTTPStatus] = {
    UnknownNameError: HTTPStatus.NOT_FOUND,
    UnusableRequestError: HTTPStatus.BAD_REQUEST,
    SettingsError: HTTPStatus.BAD_REQUEST,
    TagError: HTTPStatus.BAD_REQUEST,
    NothingToUndoError: HTTPStatus.CONFLICT,
    TooFewTagsError: HTTPStatus.CONFLICT,
    BusyError: HTTPStatus.TOO_MANY_REQUESTS,
    VersionError: HTTPStatus.NOT_FOUND,
    ResultConflictError: HTTPStatus.CONFLICT,
    CodesError: HTTPStatus.CONFLICT,
    NoSpaceError: HTTPStatus.INSUFFICIENT_STORAGE,
    VolumeError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ModelMissingError: HTTPStatus.NOT_FOUND,
    ImageNotFoundException: HTTPStatus.NOT_FOUND,
    LabelNotFoundException: HTTPStatus.NOT_FOUND,
    MONAILabelException: HTTPStatus.BAD_REQUEST,
    requests.exceptions.MissingSchema: HTTPStatus.NOT_FOUND,
    torch.OutOfMemoryError: HTTPStatus.SERVICE_UNAVAILABLE,
    requests.RequestException: HTTPStatus.BAD_GATEWAY,
}


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error a JSON object with a `detail`."""
    for kind in STATUS_OF:
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(OSError, answer_os_error)
    app.add_exception_handler(Exception, answer_fault)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answers an error whose message is meant for the caller."""
    status = next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)
    logger.warning("%s %r: %d %s", request.method, request.url.path, status, explain(error))
    return JSONResponse({"detail": explain(error)}, status_code=status)


async def answer_os_error(request: Request, error: Exception) -> JSONResponse:
    """Answers a full disk as such; what else the operating system says was expected by nobody."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return await answer_error(request, NoSpaceError(DISK_IS_FULL))
    logger.error("%s %r", request.method, request.url.path, exc_info=error)
    return await answer_fault(request, error)


async def answer_fault(request: Request, error: Exception) -> JSONResponse:
    """Answers an error that nobody expected; its traceback goes to the log, not to the caller."""
    detail = f"internal error ({type(error).__name__}) in {request.method} {request.url.path}: see the server's log, and please report it"
    return JSONResponse({"detail": detail}, status_code=HTTPStatus.INTERNAL_SERVER_ERROR)


def explain(error: Exception) -> str:
    """The message for the caller."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU has too little free memory for a single slice: send device 'cpu', or end what else uses it"
    if isinstance(error, requests.exceptions.MissingSchema):
        return "there is no DICOMweb server behind this one: its studies are a folder"
    if isinstance(error, requests.RequestException):
        return f"the DICOMweb server does not answer as expected: {error}"
    return str(getattr(error, "msg", error))
