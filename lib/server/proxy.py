"""`/proxy/dicom`: what the browser reads from the PACS, passed on whole; nothing else of it can be reached, and nothing is written."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy

import requests
from dicomweb_client.session_utils import create_session_from_gcp_credentials
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.dicomweb.waiting import limit_waiting
from lib.server.errors import UnusableRequestError
from lib.tags.location import is_url

READER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))

# What a DICOMweb root holds; a segment is a UID, a frame list, an attribute or one of the standard's words.
RESOURCES = frozenset({"studies", "series", "instances", "bulkdata"})
SEGMENT = re.compile(r"[A-Za-z0-9._,:~-]{1,200}")

# The rest speaks of one connection, or of who is logged in where.
REQUEST_HEADERS = ("accept", "accept-encoding", "accept-language", "if-none-match", "if-modified-since", "range")
REPLY_HEADERS = frozenset(
    {"content-type", "content-length", "content-encoding", "content-range", "content-disposition"}
    | {"accept-ranges", "etag", "last-modified", "cache-control", "vary", "warning", "x-total-count"}
)

CHUNK_BYTES = 1 << 18

router = APIRouter(prefix=f"{settings.MONAI_LABEL_API_STR}/proxy/dicom", include_in_schema=False)


@router.api_route("/wado/{path:path}", methods=["GET", "HEAD"])
def wado(request: Request, path: str, login: User = READER) -> StreamingResponse:
    """Retrieval."""
    return forward(request, settings.MONAI_LABEL_WADO_PREFIX, path)


@router.api_route("/qido/{path:path}", methods=["GET", "HEAD"])
def qido(request: Request, path: str, login: User = READER) -> StreamingResponse:
    """Search, with its filters; OHIF asks here for metadata too, which is retrieval."""
    prefix = settings.MONAI_LABEL_WADO_PREFIX if path.endswith("/metadata") else settings.MONAI_LABEL_QIDO_PREFIX
    return forward(request, prefix, path)


@router.api_route("/{path:path}", methods=["GET", "HEAD"])
def other(request: Request, path: str, login: User = READER) -> StreamingResponse:
    """The DICOMweb root itself."""
    return forward(request, None, path)


@router.api_route("/{path:path}", methods=["POST", "PUT", "PATCH", "DELETE"])
def refuse(path: str, login: User = READER) -> None:
    """Storing from the browser: a result gets into the PACS by being accepted."""
    raise HTTPException(
        HTTPStatus.METHOD_NOT_ALLOWED, "the proxy only reads: store DICOM files in the PACS itself, and results by accepting them"
    )


def forward(request: Request, prefix: str | None, path: str) -> StreamingResponse:
    """Asks the PACS and streams its answer.

    Args:
        request: query and some headers are passed on.
        prefix: of this service below the DICOMweb root, as configured.
        path: below the service.

    Raises:
        UnusableRequestError: the path is no DICOMweb resource.
        HTTPException: 404 where there is no PACS, 502 where it sends the browser elsewhere.
        requests.RequestException: it does not answer.
    """
    root = pacs_root()
    url = "/".join([root, *filter(None, [(prefix or "").strip("/")]), check_resource(path)])
    query = request.url.query
    headers = {name: request.headers[name] for name in REQUEST_HEADERS if name in request.headers}
    reply = session(root).request(
        request.method,
        f"{url}?{query}" if query else url,
        headers={"accept-encoding": "identity", **headers},
        stream=True,
        allow_redirects=False,
    )
    if reply.is_redirect:
        reply.close()
        raise HTTPException(HTTPStatus.BAD_GATEWAY, "the DICOMweb server answers with a redirection: start the server with its final URL")
    if reply.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        reply.close()  # else the browser would ask its user for a password of the PACS
        raise HTTPException(
            HTTPStatus.BAD_GATEWAY, f"the DICOMweb server refuses this server ({reply.status_code}): start it with the right credentials"
        )
    kept = {name: value for name, value in reply.headers.items() if name.lower() in REPLY_HEADERS}
    return StreamingResponse(chunks(reply), reply.status_code, headers=kept | {"X-Content-Type-Options": "nosniff"})


def chunks(reply: requests.Response) -> Iterator[bytes]:
    """The body as it came, still encoded; the connection is given back at its end or when the browser has gone."""
    try:
        yield from reply.raw.stream(CHUNK_BYTES, decode_content=False)
    finally:
        reply.close()


def check_resource(path: str) -> str:
    """Refuses what is no resource of a DICOMweb root, or could leave it.

    Raises:
        UnusableRequestError: it is not.
    """
    segments = path.strip("/").split("/")
    if segments[0] not in RESOURCES or not all(SEGMENT.fullmatch(item) and item.strip(".") for item in segments):
        raise UnusableRequestError(f"{path!r} is not a resource of a DICOMweb server: begin with one of {sorted(RESOURCES)}")
    return "/".join(segments)


def pacs_root() -> str:
    """URL of the DICOMweb root that is served.

    Raises:
        HTTPException: the studies are a folder.
    """
    studies = str(app_instance().studies)
    if not is_url(studies):
        raise HTTPException(HTTPStatus.NOT_FOUND, "there is no DICOMweb server behind this one: its studies are a folder")
    return studies.rstrip("/")


@functools.cache
def session(root: str) -> requests.Session:
    """Connections to the PACS that requests share, with the credentials that the server was started with."""
    made: requests.Session
    if "googleapis.com" in root:
        made = create_session_from_gcp_credentials()
    else:
        made = requests.Session()
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        made.auth = (user, password) if user and password else None
    made.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return limit_waiting(made)
