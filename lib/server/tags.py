"""The app's own routes for tags, under `/tags`."""

from __future__ import annotations

import json
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Depends, File, Query, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from app_cdm.data.tags import TagError
from lib.server.checks import check_image_id, check_json_object, parse_json
from lib.server.errors import LIST_IMAGES, UnknownNameError, UnusableRequestError
from lib.server.users import user_of
from lib.tags.book import TagBook
from lib.tags.tables import ImportOptions, export_csv, export_json, import_table
from lib.tags.validation import check_class

MAX_TABLE_BYTES = 32 << 20

READER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))

# Plain functions run in worker threads, so that a wait for the disk holds nobody up. Fixed paths come before `/{image}`.
router = APIRouter(prefix=f"{settings.MONAI_LABEL_API_STR}/tags", tags=["Tags"])


async def json_body(request: Request) -> dict[str, Any]:
    """The request's body, which must be a JSON object; parsed beside the event loop, for which a long one would take too long."""
    return await anyio.to_thread.run_sync(parse_object, await request.body())


def parse_object(body: bytes) -> dict[str, Any]:
    """A body that must be a JSON object."""
    try:
        value = parse_json(body.decode())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnusableRequestError(f"request body is not JSON in UTF-8 ({error})") from error
    if not isinstance(value, dict):
        raise UnusableRequestError('request body: send a JSON object such as {"tags": {"lesion": [[8, 15]]}}')
    return value


BODY = Depends(json_body)
TABLE = File()
CLASS = Query(default=None, alias="class")


@router.get("/summary")
def summary(login: User = READER) -> dict[str, Any]:
    """How far tagging has come: by class and by user."""
    return book().summary()


@router.get("/export", response_class=PlainTextResponse)
def export(format: str = "csv", login: User = READER) -> Response:
    """Every tag as a table that `POST /tags/import` reads."""
    if format not in ("csv", "json"):
        raise UnusableRequestError(f"format {format!r}: must be csv or json")
    text, kind = (export_csv(book()), "text/csv") if format == "csv" else (export_json(book()), "application/json")
    return Response(text, media_type=kind, headers={"Content-Disposition": f"attachment; filename=tags.{format}"})


@router.post("/import")
def import_(
    file: UploadFile = TABLE,
    dry_run: bool = False,
    split: str | None = None,
    id_suffix: str = "",
    columns: str = "",
    exclude: str | None = None,
    user: str | None = None,
    login: User = ANNOTATOR,
) -> dict[str, Any]:
    """Stores the tags of a CSV or JSON table: all or none."""
    if (file.size or 0) > MAX_TABLE_BYTES:
        raise UnusableRequestError(f"table above {MAX_TABLE_BYTES >> 20} MiB: send it in parts")
    chosen = ImportOptions(user_of(login, user), split, id_suffix, check_json_object("columns", columns), dry_run, exclude or None)
    return import_table(book(), file.filename or "", file.file.read(), chosen)


@router.post("/bulk")
def bulk(body: dict[str, Any] = BODY, login: User = ANNOTATOR) -> dict[str, Any]:
    """Stores tags of several images: all or none. Body: `{"tags": {image: {class: tag}}, "user": ...}`."""
    check_keys(body, {"tags", "user"})
    action = book().write(body.get("tags"), user_of(login, body.get("user")), "manual")
    return {"action": action, "images": len(body["tags"]), "tags": sum(map(len, body["tags"].values()))}


@router.get("/{image}")
def read(image: str, class_name: str | None = CLASS, login: User = READER) -> dict[str, Any]:
    """Tags of one image; of one class with `?class=`."""
    return describe(known(image), known_class(class_name))


@router.put("/{image}")
def write(image: str, class_name: str | None = CLASS, body: dict[str, Any] = BODY, login: User = ANNOTATOR) -> dict[str, Any]:
    """Stores tags of one image. Body: `{"tags": {class: tag}}`, or `{"value": tag}` with `?class=`; and `"user"`."""
    check_keys(body, {"tags", "user"} if class_name is None else {"value", "user"})
    if class_name is not None and "value" not in body:
        raise TagError('value is missing: send {"value": tag}')
    tags = body.get("tags") if class_name is None else {class_name: body["value"]}
    action = book().write({image: tags}, user_of(login, body.get("user")), "manual")
    return describe(image, class_name) | {"action": action}


@router.get("/{image}/history")
def history(image: str, class_name: str | None = CLASS, login: User = READER) -> dict[str, Any]:
    """Everything that was done to an image's tags, oldest first."""
    events = book().store.history(known(image), known_class(class_name))
    return {"image": image, "history": [event.to_dict() for event in events]}


@router.post("/{image}/undo")
def undo(image: str, user: str | None = None, action: int | None = None, login: User = ANNOTATOR) -> dict[str, Any]:
    """Takes back the last action on an image; 409 when there is none, or it is another than `?action=`."""
    undone, _ = book().store.undo(known(image), user_of(login, user), action)
    return describe(image) | {"undone": undone}


def book() -> TagBook:
    """The running app's tags."""
    tags: TagBook = app_instance().tags
    return tags


def known(image: str) -> str:
    """Requires an image of the datastore; of a series that turned out to be none, tags can be seen and taken back."""
    check_image_id(image)
    if book().images.missing([image], with_left_out=True):
        raise UnknownNameError("image", image, hint=LIST_IMAGES)
    return image


def known_class(name: str | None) -> str | None:
    """Requires a class that can be tagged, if one is named."""
    if name is not None:
        check_class(name, book().class_names())
    return name


def check_keys(body: dict[str, Any], allowed: set[str]) -> None:
    """Refuses a body with something else in it, which may be a misspelt tag."""
    if set(body) - allowed:
        raise UnusableRequestError(f"request body: unknown {sorted(set(body) - allowed)}; it may hold {sorted(allowed)}")


def describe(image: str, class_name: str | None = None) -> dict[str, Any]:
    """An image's tags, and who gave them."""
    tags = {name: value for name, value in book().tags(image).items() if class_name in (None, name)}
    events = [event.to_dict() for event in book().store.current(image)]
    shown = ("user", "time", "provenance", "action")
    details = {event["class"]: {key: event[key] for key in shown} for event in events if event["class"] in tags}
    return {"image": image, "tags": tags, "details": details}
