"""Routes for the versions of the model in service, under `/versions`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.trainers.weak_label import served_versions

READER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))

router = APIRouter(prefix=f"{settings.MONAI_LABEL_API_STR}/versions", tags=["Versions"])


@router.get("/")
def versions(login: User = READER) -> dict[str, Any]:
    """Every version of the model in service, the oldest first: lineage, tags, held-out scores."""
    found = served_versions(app_instance().options)
    return {"model": found.name, "current": found.current(), "versions": found.history()}


@router.post("/rollback")
def rollback(version: str | None = None, login: User = ADMIN) -> dict[str, Any]:
    """Puts an earlier version in service, the one before by default; requests in flight finish on the one they began with."""
    found = served_versions(app_instance().options)
    found.activate(found.previous() if version is None else version)
    return {"model": found.name, "current": found.current()}
