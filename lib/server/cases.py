"""What the tagging page needs to know of cases and of the server, under `/tagging`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from app_cdm.data.slices import find_slicing_axis
from lib.datastore import FolderDatastore
from lib.display import DisplayFiles
from lib.models import model_folder
from lib.plain import plain
from lib.server.checks import check_image_id
from lib.server.errors import UnknownNameError, UnusableRequestError
from lib.server.page import PREFIX
from lib.server.tags import book, describe, known
from lib.tags.record import TagEvent
from lib.trainers.weak_label import NAME as WEAK_LABEL
from lib.trainers.weak_label import is_training, served_versions

MAX_PAGE = 200
State = Literal["all", "open", "tagged"]

READER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))

# Plain functions run in worker threads: a series that has to be fetched or converted holds nobody up.
router = APIRouter(prefix=PREFIX, tags=["Tagging page"])


@router.get("/state")
def state(login: User = READER) -> dict[str, Any]:
    """Who is logged in, what can be tagged, how far tagging and training are, and which model is in service."""
    app = app_instance()
    trainer = app._trainers.get(WEAK_LABEL)  # the host may be told to train nothing
    versions, methods = served_versions(app.options), app.models.methods()
    return plain(
        {
            "user": login.username if settings.MONAI_LABEL_AUTH_ENABLE else None,
            "classes": book().class_names(),
            "progress": book().summary(),
            "model": {"name": versions.name, "version": versions.current(), "methods": methods} if methods else None,
            "model_missing": None if model_folder(app.options) else app.models.explain_missing(),
            "is_training": is_training(),
            "training": trainer.stats() if trainer else {},
            "train_options": trainer.config() if trainer else None,
        }
    )


@router.get("/cases")
def cases(query: str = "", state: State = "all", offset: int = 0, limit: int = 50, login: User = READER) -> dict[str, Any]:
    """A part of the list of cases, by name: what was tagged on each, by whom, and when last.

    `query` is part of a name, of a title or of a user's name; `open` is what lacks a tag for some class. The title is what a DICOM
    series is called in it, and empty of other images; whose it is, is not part of it.
    """
    if offset < 0 or not 0 < limit <= MAX_PAGE:
        raise UnusableRequestError(f"offset = {offset}, limit = {limit}: offset must be at least 0, limit 1 to {MAX_PAGE}")
    images, events, names = sorted(book().images.ids()), book().store.current_by_image(), book().class_names()
    found = [image for image in images if _is_wanted(image, events.get(image, ()), query.casefold(), state, names)]
    shown = [_row(image, events.get(image, ())) for image in found[offset : offset + limit]]
    return {"total": len(images), "found": len(found), "offset": offset, "cases": shown}


@router.get("/case/{image}")
def case(image: str, login: User = READER) -> dict[str, Any]:
    """One case: its slices, its tags and where its voxels are; addresses are relative to the server's root."""
    grid = book().images.grid(known(image))
    axis, source = find_slicing_axis(grid), image_file(image).stat()
    study = study_of(image)
    has_ohif = study is not None and isinstance(app_instance().datastore(), DICOMWebDatastore)
    about = {
        "title": book().images.title(image),
        "classes": book().class_names(),
        "slicing_axis": axis,
        "num_slices": grid.array.shape[axis],
        "shape": grid.array.shape,
        "spacing_mm": grid.spacing_mm,
        "study": study,
        "ohif": f"ohif/viewer?StudyInstanceUIDs={quote(study)}" if study and has_ohif else None,
        # Another file under the same id is another address, so that a browser may keep what it has fetched.
        "volume": f"tagging/case/{quote(image, safe='')}/volume?of={source.st_size}-{source.st_mtime_ns}",
    }
    return plain(describe(image) | about)


@router.get("/case/{image}/volume")
def volume(image: str, of: str = "", login: User = READER) -> FileResponse:
    """The voxels as NIfTI, in the voxel order that tags count slices in."""
    file = DisplayFiles(app_instance().options.cache_dir / "display").find(image_file(known(image)))
    age = "private, max-age=3600" if of else "no-cache"
    return FileResponse(file, media_type="application/octet-stream", filename=file.name, headers={"Cache-Control": age})


@router.get("/study/{study}")
def study(study: str, login: User = READER) -> dict[str, Any]:
    """The images of a DICOM study, by name."""
    check_image_id(study)
    datastore = app_instance().datastore()
    if isinstance(datastore, DICOMWebDatastore):
        found = datastore._client.search_for_series(search_filters={"StudyInstanceUID": study})
        uids = {value for series in found for value in series.get("0020000E", {}).get("Value", [])}
        images = sorted(uids & book().images.ids())
    else:
        images = datastore.series_of_study(study) if isinstance(datastore, FolderDatastore) else []
    if not images:
        raise UnknownNameError("study", study, hint="no image series of it is among this server's studies")
    return {"study": study, "images": images}


def image_file(image: str) -> Path:
    """File of an image; a series of a PACS is fetched, and a series of a folder converted, if need be."""
    return Path(app_instance().datastore().get_image_uri(image))


def study_of(image: str) -> str | None:
    """StudyInstanceUID of an image that has been fetched, where its source is DICOM."""
    datastore = app_instance().datastore()
    series = datastore.find_series(image) if isinstance(datastore, FolderDatastore) else None
    uid = series.study_uid if series else datastore.get_image_info(image).get("StudyInstanceUID")
    return str(uid) if uid and uid != "UNK" else None


def _row(image: str, events: Collection[TagEvent]) -> dict[str, Any]:
    given = [event for event in events if event.value is not None]
    return {
        "image": image,
        "title": book().images.title(image),
        "tags": {event.class_name: event.value for event in given},
        "users": sorted({event.user for event in given}),
        "time": max((event.time for event in given), default=None),
    }


def _is_wanted(image: str, events: Collection[TagEvent], query: str, state: State, names: tuple[str, ...]) -> bool:
    if state == "all" and not query:
        return True
    given = {event.class_name: event for event in events if event.value is not None}
    if (
        query
        and query not in f"{image}\n{book().images.title(image)}".casefold()
        and not any(query in event.user.casefold() for event in given.values())
    ):
        return False
    is_complete = bool(given) and all(name in given for name in names)
    return state == "all" or (state == "tagged" and bool(given)) or (state == "open" and not is_complete)
