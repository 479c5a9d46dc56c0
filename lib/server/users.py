"""Who acts: the login where there is one, else the name that a request gives."""

from __future__ import annotations

from typing import Any

from monailabel.config import settings

from app_cdm.data.tags import TagError
from lib.tags.record import UNKNOWN_USER, check_user


def user_of(login: Any, given: object = None) -> str:
    """The user to be written beside a tag.

    Args:
        login: the host's user; without authentication everybody is the same one, which says nothing.
        given: the name in the request.

    Raises:
        TagError: the name is not usable, or another than the login.
    """
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return UNKNOWN_USER if given is None else check_user(given)
    if given not in (None, login.username):
        raise TagError(f"user {given!r}: you are logged in as {login.username!r}")
    return check_user(login.username)


def client_of(login: Any, client_id: object) -> str:
    """The same for a viewer, which names itself by a client id; one that cannot be used does not stop its label."""
    try:
        return user_of(login, None if settings.MONAI_LABEL_AUTH_ENABLE else client_id)
    except TagError:
        return UNKNOWN_USER
