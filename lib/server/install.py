"""Puts our server layer over the host's web application, without changing the host's files."""

from __future__ import annotations

import gc
import logging
import sys

import anyio
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.middleware import Middleware

from lib.options import AppOptions
from lib.server.cases import router as case_router
from lib.server.errors import add_error_handlers
from lib.server.limits import SameOrigin, UploadLimit
from lib.server.ohif import router as ohif_router
from lib.server.page import page_files
from lib.server.page import router as page_router
from lib.server.proxy import router as proxy_router
from lib.server.results import result_router
from lib.server.routes import checked_routes
from lib.server.tags import router as tag_router
from lib.server.versions import router as version_router

logger = logging.getLogger(__name__)

HOST_MODULE = "monailabel.app"
SWITCH_INTERVAL_S = 0.0005


def has_web_application() -> bool:
    """Whether this process serves; a training process does not."""
    return HOST_MODULE in sys.modules


def install_server(options: AppOptions) -> None:
    """Mends the running web application; does nothing where there is none, as in a training process.

    Called while the application starts up, so no request has been served yet. Calling it again changes nothing.

    Args:
        options: limits, origins and address.
    """
    host_module = sys.modules.get(HOST_MODULE)
    if host_module is None:
        return
    web: FastAPI = host_module.app
    if getattr(web.state, "is_mended", False):
        return
    web.state.is_mended = True
    turns = anyio.CapacityLimiter(options.waiting_requests)
    routers = [tag_router, version_router, result_router(turns), case_router, page_router, proxy_router, ohif_router]
    own = [*(route for router in routers for route in router.routes), *page_files()]
    web.router.routes[:0] = [*checked_routes(turns), *own]
    web.user_middleware[:] = middleware(options)
    add_error_handlers(web)
    web.middleware_stack = None  # built again, with the above, for the first request
    logger.info(
        "Server layer in place: uploads up to %d MiB, origins besides its own: %s", options.upload_limit_mb, list(options.allow_origins)
    )


def spare_from_collection() -> None:
    """Leaves out of the search for garbage what is there after the start, and stays: the libraries and the index of the studies.

    A full search through them stops every thread, half a second with 20 000 images.
    """
    gc.collect()
    gc.freeze()


def share_the_interpreter() -> None:
    """Lets threads take turns in Python ten times as often as they do by default.

    An answer such as `/info/` gives up its turn at every file that it looks at, and waits for the next one for as long as a thread that
    writes or compresses a large mask may keep it: a hundred times 5 ms are half a second.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def middleware(options: AppOptions) -> list[Middleware]:
    """Outermost first; replaces the host's, which lets any origin in."""
    layers = [
        Middleware(SameOrigin, allow_origins=options.allow_origins, is_loopback=options.is_loopback),
        Middleware(UploadLimit, limit_bytes=options.upload_limit_bytes),
    ]
    if options.allow_origins:
        cors = Middleware(CORSMiddleware, allow_origins=list(options.allow_origins), allow_methods=["*"], allow_headers=["*"])
        layers.insert(0, cors)
    return layers
