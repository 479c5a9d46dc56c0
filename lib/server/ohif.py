"""`/ohif/`: the viewer that MONAI Label ships, with its files served as what they are and set up for this server."""

from __future__ import annotations

import mimetypes
import re
from functools import cache
from pathlib import Path
from typing import Final

import monailabel
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import StaticFiles

READER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
FOLDER = Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif"
OURS = Path(__file__).parent / "static"
SCRIPT = "app-cdm.js"

# A bundle's name holds a digest of its content, so it never changes.
BUNDLE = re.compile(r"\.[0-9a-f]{20}\.(js|css)$|[0-9a-f]{20}\.wasm$")
LASTING = "public, max-age=31536000, immutable"

# Patient data stays here: the viewer may talk to this server only. Its bundles need inline scripts, `eval` and workers.
POLICY: Final = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "worker-src 'self' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

# The server reads and writes no study for the browser except through its own routes, so the viewer does not offer to.
CONFIGURATION: Final = """window.config = {
  routerBasename: '/ohif/',
  showStudyList: true,
  extensions: [],
  modes: [],
  showWarningMessageForCrossOrigin: true,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: 'never' },
  defaultDataSourceName: 'dicomweb',
  useSharedArrayBuffer: 'FALSE',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
    sourceName: 'dicomweb',
    configuration: {
      friendlyName: 'PACS behind this server',
      name: 'pacs',
      wadoUriRoot: '/proxy/dicom/wado',
      qidoRoot: '/proxy/dicom/qido',
      wadoRoot: '/proxy/dicom/wado',
      qidoSupportsIncludeField: true,
      supportsReject: false,
      imageRendering: 'wadors',
      thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true,
      supportsFuzzyMatching: false,
      supportsWildcard: true,
      dicomUploadEnabled: false,
      bulkDataURI: { enabled: true },
    },
  }],
};
"""

router = APIRouter(prefix=f"{settings.MONAI_LABEL_API_STR}/ohif", include_in_schema=False)


@router.get("")
def without_slash(request: Request) -> RedirectResponse:
    """To the address under which the viewer knows itself."""
    return RedirectResponse(request.url.replace(path=f"{request.url.path}/"))


@router.api_route("/{path:path}", methods=["GET", "HEAD"])
async def ohif(request: Request, path: str, login: User = READER) -> Response:
    """A file of the viewer, or its page, which finds out from the address what to show."""
    if path == "app-config.js":
        return Response(CONFIGURATION, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
    if path == SCRIPT:
        return Response((OURS / SCRIPT).read_text(), media_type="text/javascript", headers={"Cache-Control": "no-cache"})
    if is_page(path):
        return HTMLResponse(page(), headers=HEADERS)
    try:
        answer = await files().get_response(path, request.scope)
    except StarletteHTTPException as error:
        raise HTTPException(404, f"the viewer has no file {path!r}: open /ohif/") from error
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Cache-Control"] = LASTING if BUNDLE.search(path) else "no-cache"
    return answer


def is_page(path: str) -> bool:
    """Whether an address is one of the viewer's own, such as `viewer` or `monai-label`, and not of a file."""
    return path in ("", "index.html") or not (path.startswith("assets/") or Path(path).suffix)


@cache
def page() -> str:
    """The viewer's page: our script first, and no fonts from another company's server."""
    text = (FOLDER / "index.html").read_text()
    text = re.sub(r"<link[^>]*https://fonts\.[^>]*>", "", text)
    return text.replace("<head>", f'<head><script src="/ohif/{SCRIPT}"></script>', 1)


@cache
def files() -> StaticFiles:
    """The viewer's files; paths that leave the folder are not found."""
    mimetypes.add_type("application/wasm", ".wasm")
    mimetypes.add_type("text/javascript", ".js")
    return StaticFiles(directory=FOLDER)
