"""Who may talk to the server and how much they may send: pure ASGI middleware, before anything is read."""

from __future__ import annotations

import shutil
import tempfile
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.options import is_loopback

# A form's file is spooled to the temporary folder, and copied there by the host before it is looked at.
COPIES = 2
# What is no form is JSON, and takes about thirty times its length while it is parsed.
MAX_JSON_BYTES = 8 << 20
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class UploadLimit:
    """Answers 413 to a request body above a limit, by its announced length or as it streams in, and 507 where files find no room.

    A form that does not fit would fail half-way: while it is read with an answer that blames the client, or while the host copies a file
    of it, which then stays in the temporary folder.

    Args:
        app: what comes next.
        limit_bytes: largest body accepted.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit_bytes = self._limit_bytes(headers)
        refusal = self._refusal(headers, limit_bytes)
        if refusal is not None:
            await self._discard(receive)
            await refusal(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit_bytes:
                raise HTTPException(status_code=413, detail=self._detail(limit_bytes))
            return message

        await self.app(scope, counted, send)

    def _limit_bytes(self, headers: Headers) -> int:
        return self.limit_bytes if _is_form(headers) else min(self.limit_bytes, MAX_JSON_BYTES)

    def _detail(self, limit_bytes: int) -> str:
        way_out = "send a smaller image, or start the server with a larger --upload-limit-mb"
        return f"request body above {limit_bytes / 2**20:g} MiB: {way_out if limit_bytes == self.limit_bytes else 'send it in parts'}"

    def _refusal(self, headers: Headers, limit_bytes: int) -> JSONResponse | None:
        """The answer to a request whose announced length is too much, if it is."""
        announced = headers.get("content-length", "0")
        length = int(announced) if announced.isdigit() else 0
        if length > limit_bytes:
            return JSONResponse({"detail": self._detail(limit_bytes)}, status_code=413)
        needed = COPIES * length
        if _is_form(headers) and needed > shutil.disk_usage(tempfile.gettempdir()).free:
            detail = (
                f"the server's disk is full: this upload takes {needed / 2**20:.1f} MiB in its temporary folder; make room and try again"
            )
            return JSONResponse({"detail": detail}, status_code=507)
        return None

    async def _discard(self, receive: Receive) -> None:
        """Reads on for a while: a client cut off while it sends never sees the answer."""
        discarded = 0
        while discarded <= 4 * self.limit_bytes:
            message = await receive()
            discarded += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


def _is_form(headers: Headers) -> bool:
    return headers.get("content-type", "").lower().startswith("multipart/")


class SameOrigin:
    """Answers 403 to what a foreign web page makes a browser send.

    CORS headers only keep a page from reading answers; forms and simple requests are sent all the same, and a page may
    point its own host name at this machine. So a changing request with a foreign `Origin`, and on a loopback address any
    `Host` that is not one, is refused. So is what a foreign page embeds rather than links to (`Sec-Fetch-Site`): it
    could find out which images there are, and have the server pack all of them.

    Args:
        app: what comes next.
        allow_origins: origins that may call besides the server's own.
        is_loopback: whether the server listens on this machine only.
    """

    def __init__(self, app: ASGIApp, allow_origins: tuple[str, ...], is_loopback: bool) -> None:
        self.app = app
        self.allow_origins = allow_origins
        self.is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        detail = None
        if self.is_loopback and not is_loopback(_split(f"//{host}").hostname or ""):
            detail = f"host {host!r} is not this machine: use http://127.0.0.1, or start the server with --host"
        elif origin and scope["method"] not in SAFE_METHODS and origin not in self.allow_origins and _split(origin).netloc != host:
            detail = f"origin {origin!r} may not call this server: start it with --allow-origin {origin}"
        elif (
            headers.get("sec-fetch-site") == "cross-site"
            and headers.get("sec-fetch-mode") != "navigate"
            and origin not in self.allow_origins
        ):
            detail = "a page of another site may link to this server, but not embed what it serves: start it with --allow-origin"
        answer = self.app if detail is None else JSONResponse({"detail": detail}, status_code=403)
        await answer(scope, receive, send)


def _split(address: str) -> SplitResult:
    """The parts of an address; none of what is no address."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
