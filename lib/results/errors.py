"""Why a result cannot be used as asked."""

from __future__ import annotations

import errno

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk, a quota and a limit of the shell answer


DISK_IS_FULL = "the server's disk is full: make room and try again"


class ResultConflictError(Exception):
    """The result exists, but what is asked contradicts it; the message says why and what to do."""


class NoSpaceError(Exception):
    """The server's disk is full; nothing was stored."""
