"""The tagging page's own files, under `/tagging/`: nothing but this server is ever asked for anything."""

from __future__ import annotations

from os import PathLike, stat_result
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse, Response
from monailabel.config import settings
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PREFIX = f"{settings.MONAI_LABEL_API_STR}/tagging"
FOLDER = Path(__file__).resolve().parent.parent / "page"

# `data:` is for the font and textures inside NiiVue; it needs neither workers nor WebAssembly for what is shown here.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked again each time, and answered with 304: a page and modules of two versions never meet.
    "Cache-Control": "no-cache",
}

router = APIRouter(prefix=PREFIX, include_in_schema=False)


class PageFiles(StaticFiles):
    """Files with the page's headers."""

    def file_response(self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200) -> Response:
        """One file, or 304; never a path outside the folder, see `StaticFiles`."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


@router.get("")
def without_slash() -> RedirectResponse:
    """The page's modules are named relative to its folder."""
    return RedirectResponse(f"{PREFIX}/")


@router.get("/")
def page() -> FileResponse:
    """The page; who may read and tag is asked for by the routes that it calls."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


def page_files() -> list[Mount]:
    """Its style sheet and modules."""
    folders = ("css", "js", "vendor")
    return [Mount(f"{PREFIX}/{name}", PageFiles(directory=FOLDER / name), name=f"page-{name}") for name in folders]
