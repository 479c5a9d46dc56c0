"""Cohorts as a query of a DICOMweb server: series are fetched whole, one at a time, and not kept."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session, create_session_from_user_pass
from pydicom.datadict import tag_for_keyword

from app_cdm.cohort.cases import Case
from app_cdm.cohort.holder import Holder, is_running, this_process
from app_cdm.data.dicom import read_dicom_folder
from app_cdm.data.qido import IMAGE_MODALITIES, search_series, text_of
from app_cdm.data.volume import Volume

PREFIX = "app_cdm_series_"
MIB = 2**20
TIMEOUT_S = (10.0, 300.0)  # to connect, and between two pieces of an answer


class Pacs:
    """A DICOMweb server as a cohort.

    Args:
        url: of the service; holds no name or password.
        login: name and password, or None.
        cache: folder in which a series lies while it is read; the system's for temporary files by default.
        limit_mb: largest series that is fetched, in MiB as files.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(self, url: str, login: tuple[str, str] | None, cache: Path | None = None, limit_mb: int = 4096) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--dicomweb {url!r}: must be the http or https URL of a DICOMweb service, such as http://pacs:8042/dicom-web")
        if "@" in parts.netloc:
            raise ValueError("--dicomweb: no name and password in the URL, which logs and summaries show; use --dicomweb-user")
        if limit_mb < 1:
            raise ValueError(f"--fetch-limit-mb {limit_mb}: must be positive")
        self.url, self._limit_mb = url.rstrip("/"), limit_mb
        self._cache = cache or Path(tempfile.gettempdir())
        session = create_session_from_user_pass(*login) if login else create_session()
        session.request = partial(_request, session.request)  # type: ignore[method-assign]
        self._client = DICOMwebClient(self.url, session=session)

    def find_cases(self, query: Mapping[str, str]) -> list[Case]:
        """The image series that a query matches, by SeriesInstanceUID.

        Args:
            query: DICOM keyword -> value, as QIDO-RS matches them: `MR`, `20240101-20241231`, `T2*`. A list of modalities separated by
                commas is asked for one by one.

        Raises:
            ValueError: a keyword is not one of DICOM's.
            FileNotFoundError: nothing matches.
            OSError: the server does not answer, or refuses.
        """
        unknown = [name for name in query if tag_for_keyword(name) is None]
        if unknown:
            raise ValueError(f"--query {unknown[0]}: no DICOM keyword; write it as Modality, StudyDate, SeriesDescription, PatientID, ...")
        modalities = [item.strip() for item in query.get("Modality", "").split(",") if item.strip()]
        cases = {}
        # Who starts a cohort wants to know at once that the server is not there; in the night it may be back after a moment.
        self._client.set_http_retry_params(retry=False)
        for search in [{**query, "Modality": item} for item in modalities] or [dict(query)]:
            for item in search_series(self._client, search):
                if text_of(item, "Modality") in (modalities or IMAGE_MODALITIES):
                    study, series = text_of(item, "StudyInstanceUID"), text_of(item, "SeriesInstanceUID")
                    count = text_of(item, "NumberOfSeriesRelatedInstances")
                    read = partial(self._read, study, series, int(count) if count else None)
                    cases[series] = Case(series, f"{self.url}/studies/{study}/series/{series}", read)
        self._client.set_http_retry_params(retry=True)
        if not cases:
            raise FileNotFoundError(f"{self.url}: no image series matches {dict(query) or 'the query, which asks for all'}")
        return [cases[series] for series in sorted(cases)]

    def sweep(self) -> None:
        """Removes what processes that were killed have left in the cache, of this machine and boot (of this container) alone."""
        prefix = _prefix(this_process())
        for folder in self._cache.glob(f"{prefix}*"):
            named = re.fullmatch(rf"{prefix}(\d+)_(\d+)_\w+", folder.name)
            if named and not is_running(int(named[1]), float(named[2])):
                shutil.rmtree(folder, ignore_errors=True)

    def _read(self, study: str, series: str, count: int | None) -> Volume:
        """Fetches a series, reads it and removes it.

        Raises:
            ValueError: it is larger than the limit, came in part, or makes no volume.
            OSError: the server does not answer, or refuses.
        """
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=folder_prefix(this_process())) as work:
            folder, size, number = Path(work) / series, 0, 0
            folder.mkdir()
            for number, instance in enumerate(self._client.iter_series(study, series), start=1):
                file = folder / f"{number:06d}.dcm"
                instance.save_as(file, write_like_original=False)
                size += file.stat().st_size
                if size > self._limit_mb * MIB:
                    raise ValueError(f"series {series} is larger than {self._limit_mb} MiB: raise --fetch-limit-mb")
            if count is not None and number != count:
                raise ValueError(f"series {series}: {number} of {count} instances came from the server: ask again")
            return read_dicom_folder(folder)


def folder_prefix(holder: Holder) -> str:
    """How the names begin of the folders in which a process keeps a series."""
    return f"{_prefix(holder)}{holder.pid}_{int(holder.started)}_"


def _prefix(holder: Holder) -> str:
    """The same of all processes where a pid means the same."""
    return f"{PREFIX}{hashlib.sha256(f'{holder.host} {holder.space}'.encode()).hexdigest()[:12]}_"


def _request(request: Callable[..., Any], method: str, url: str, **options: Any) -> Any:
    """Sends a request of the client with a time limit, which it does not set, and with wildcards as they are.

    The client encodes `*` and `?`, which need not be and which Orthanc's DICOMweb plugin then takes for no wildcards.
    """
    address, mark, conditions = url.partition("?")
    return request(method, address + mark + conditions.replace("%2A", "*").replace("%3F", "?"), timeout=TIMEOUT_S, **options)


def parse_query(conditions: Sequence[str]) -> dict[str, str]:
    """`KEYWORD=VALUE` conditions as a mapping.

    Raises:
        ValueError: one is not of this form, or a keyword stands twice.
    """
    query: dict[str, str] = {}
    for condition in conditions:
        name, is_given, value = condition.partition("=")
        if not (is_given and name and value):
            raise ValueError(f"--query {condition!r}: must be KEYWORD=VALUE, such as Modality=MR or StudyDate=20240101-20241231")
        if name in query:
            raise ValueError(f"--query {name}: stands twice; a condition holds one value (of Modality also several: MR,CT)")
        query[name] = value
    return query
