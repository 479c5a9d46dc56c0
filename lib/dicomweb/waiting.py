"""Requests to a PACS end after a while: the host's client would wait for ever, and everybody behind it."""

from __future__ import annotations

from typing import Any

import requests
from monailabel.config import settings
from requests.adapters import HTTPAdapter

CONNECT_LIMIT_S = 5.0
CONNECTIONS = 32


class PatientAdapter(HTTPAdapter):
    """Connects within `CONNECT_LIMIT_S` and waits for each piece of an answer as long as the host's proxy setting says."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        options["timeout"] = options.get("timeout") or (CONNECT_LIMIT_S, settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT)
        return super().send(request, **options)


def limit_waiting(session: requests.Session) -> requests.Session:
    """Gives a session its time limits, and enough connections for a viewer."""
    for scheme in ("http://", "https://"):
        session.mount(scheme, PatientAdapter(pool_maxsize=CONNECTIONS))
    return session
