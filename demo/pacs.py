"""`python -m demo.pacs`: the demo studies in a PACS of their own, the label server on it, and where to open OHIF."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from demo.cases import Case, make_case
from demo.client import ReplyError, auto_segment, offered_model
from demo.dicom import series_uid, study_uid, write_series
from demo.orthanc import Orthanc, OrthancError, find_orthanc
from demo.report import failures, score
from demo.server import LabelServer, ServerError, find_free_port, is_port_free
from demo.study import DEMO_CASES, DICOM_CASE
from demo.workspace import DEFAULT, WorkspaceError, check_workspace, mark_workspace

WORKSPACE = DEFAULT / "pacs"
DEFAULT_PORT = 8000
# Where Debian's own Orthanc service listens once the package is installed; the next free port is taken.
ORTHANC_PORT = 8042

CASES = (*DEMO_CASES, DICOM_CASE)


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        port: of the label server.
        workspace: folder for studies, PACS and logs; made anew.
        extra: further arguments of the label server.
        once: stop after a check of the masks.
        cases: how many studies.
    """

    port: int
    workspace: Path
    extra: tuple[str, ...]
    once: bool
    cases: int


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo.

    Returns:
        0 if the masks are right or if Ctrl-C ended the serving, 1 if the masks are wrong, 2 if a program is missing, a port is
        taken or something did not start, 130 if interrupted before.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _run(_options(arguments))
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    except (OrthancError, ServerError, ReplyError, WorkspaceError) as error:
        print(f"The PACS demo cannot run: {error}", file=sys.stderr)
        return 2


def _options(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m demo.pacs", description="Demo studies in Orthanc, masks in OHIF. Research use only.")
    parser.add_argument("--once", action="store_true", help="stop after the check; exit 0 only if the masks are right")
    parser.add_argument("--port", type=int, help=f"port of the label server (default {DEFAULT_PORT}; with --once any free one)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the networks run")
    parser.add_argument("--workspace", type=Path, default=WORKSPACE, help="folder for studies, PACS and logs; what is in it is lost")
    parser.add_argument("--cases", type=int, default=len(CASES), choices=range(1, len(CASES) + 1), help="studies (default: %(default)s)")
    given = parser.parse_args(arguments)
    port = given.port or (find_free_port() if given.once else DEFAULT_PORT)
    if not is_port_free(port):
        hint = f"make pacs-demo PORT={find_free_port(port + 1)}"
        raise ServerError(f"port {port} is in use by another program: stop it, or choose another port: {hint}")
    return Options(port, given.workspace, ("--device", given.device), given.once, given.cases)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(options: Options) -> int:
    find_orthanc()
    check_workspace(options.workspace)
    print("Making the demo studies (synthetic, no patient data) ...", flush=True)
    cases = [make_case(spec) for spec in CASES[: options.cases]]
    with _pacs(options.workspace, cases) as pacs, _server(options, pacs) as server:
        wrong = _check(server.url, cases, options.workspace / "answers")
        if not options.once:
            _serve(server, pacs, cases)
    return 1 if wrong else 0


@contextmanager
def _pacs(workspace: Path, cases: list[Case]) -> Iterator[Orthanc]:
    """Orthanc with the cases, and nothing of an earlier run."""
    shutil.rmtree(workspace, ignore_errors=True)
    mark_workspace(workspace)
    print("Starting Orthanc ...", flush=True)
    with Orthanc(workspace / "orthanc", find_free_port(ORTHANC_PORT)) as pacs:
        count = sum(pacs.store(write_series(case, workspace / "dicom" / case.spec.case_id)) for case in cases)
        print(f"  {len(cases)} studies ({count} files) stored; DICOMweb root {pacs.url}")
        print(f"  {reach(pacs)}", flush=True)
        yield pacs


def reach(pacs: Orthanc) -> str:
    """Who can reach the PACS, as measured."""
    if pacs.is_loopback_only():
        return "listens on 127.0.0.1 only"
    return (
        "LISTENS ON EVERY INTERFACE, because this version of Orthanc cannot do otherwise and no C compiler was found to make it; "
        "it refuses requests of other machines itself. Install gcc and libc6-dev to close the port to them"
    )


@contextmanager
def _server(options: Options, pacs: Orthanc) -> Iterator[LabelServer]:
    print("Starting the label server ...", flush=True)
    start = time.perf_counter()
    workspace = options.workspace
    with LabelServer(pacs.url, options.port, workspace / "server.log", workspace / "cache", options.extra) as server:
        print(f"  answers at {server.url} ({time.perf_counter() - start:.0f} s)", flush=True)
        yield server


def _check(url: str, cases: list[Case], folder: Path) -> list[str]:
    """One auto-segment click a study, against the known truth."""
    model = offered_model(url)
    print(f"Asking for masks: POST {url}/infer/{model}?image=SeriesInstanceUID")
    scores = []
    for case in cases:
        scores.append(score(case, auto_segment(url, model, series_uid(case.spec.case_id), folder)))
        print(f"  {scores[-1]}", flush=True)
    wrong = failures(scores)
    print("The masks are right." if not wrong else "NOT right: " + "; ".join(wrong))
    return wrong


def _serve(server: LabelServer, pacs: Orthanc, cases: list[Case]) -> None:
    """Prints where to look and waits for Ctrl-C."""
    print(f"""
Open in a browser; Ctrl-C stops both servers. Research use only, not a medical device.
  OHIF, study list   {server.url}/ohif/
  OHIF, one study    {server.url}/ohif/monai-label?StudyInstanceUIDs={study_uid(cases[0].spec.case_id)}
                     press the button beside "Server", open Auto-Segmentation, press Run
  API                {server.url}/
  PACS (DICOMweb)    {pacs.url}
""", flush=True)  # fmt: skip
    try:
        server.watch()
    except KeyboardInterrupt:
        print("\nStopped.")


if __name__ == "__main__":
    sys.exit(main())
