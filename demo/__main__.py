"""`python -m demo`: makes the demo study, asks the real label server for masks, checks them and keeps serving."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from demo.cases import Case
from demo.client import Answer, ReplyError, auto_segment, offered_model
from demo.dicom import series_uid
from demo.figure import draw_figure
from demo.report import MIN_MEAN_DICE, Score, failures, score
from demo.server import LabelServer, ServerError, find_free_port, is_port_free
from demo.study import DICOM_CASE, make_demo_study
from demo.workspace import DEFAULT, WorkspaceError

FOLDER = Path(__file__).resolve().parent
DEFAULT_PORT = 8000


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo.

    Returns:
        0 if the masks are right or if Ctrl-C ended the serving, 1 if the masks are wrong, 2 if the server could not be
        started or asked, 130 if interrupted before the end of the check.
    """
    options = _parser().parse_args(arguments)
    port = options.port or (find_free_port() if options.once else DEFAULT_PORT)
    if not is_port_free(port):
        hint = f"make demo PORT={find_free_port(port + 1)}"
        print(f"Port {port} is in use by another program: stop it, or choose another port: {hint}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        extra = ("--device", options.device, *(("--model-dir", str(options.model_dir)) if options.model_dir else ()))
        return _run(options.workspace, options.figure, port, extra, once=options.once)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    except (ServerError, ReplyError, WorkspaceError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Label server on a synthetic FLAIR study. Research use only.")
    parser.add_argument("--once", action="store_true", help=f"stop after the figure; exit 0 only if mean Dice >= {MIN_MEAN_DICE}")
    parser.add_argument("--port", type=int, help=f"port on 127.0.0.1 (default {DEFAULT_PORT}; with --once any free one)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the networks run")
    parser.add_argument("--model-dir", type=Path, help="folder of models to serve (default: model/)")
    parser.add_argument("--workspace", type=Path, default=DEFAULT, help="folder for study, truth and log")
    parser.add_argument("--figure", type=Path, default=FOLDER / "figure.png", help="figure to write")
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(workspace: Path, figure: Path, port: int, extra: tuple[str, ...], *, once: bool) -> int:
    start = time.perf_counter()
    print("Making the demo study (synthetic, no patient data) ...", flush=True)
    cases = make_demo_study(workspace)
    print(f"  {len(cases)} cases in {workspace / 'study'} ({time.perf_counter() - start:.0f} s)")
    print("Starting the label server ...", flush=True)
    start = time.perf_counter()
    with LabelServer(workspace / "study", port, workspace / "server.log", workspace / "cache", extra) as server:
        print(f"  answers at {server.url} ({time.perf_counter() - start:.0f} s)")
        answers, scores = _ask(server.url, cases, workspace / "answers")
        draw_figure(cases, answers, scores, figure)
        wrong = _report(scores, figure)
        if not once:
            _serve(server)
    return 1 if wrong else 0


def _ask(url: str, cases: list[Case], folder: Path) -> tuple[list[Answer], list[Score]]:
    """One auto-segment click a case."""
    model = offered_model(url)
    print(f"Asking for masks: POST {url}/infer/{model}?image=ID")
    answers, scores = [], []
    for case in cases:
        image_id = series_uid(case.spec.case_id) if case.spec is DICOM_CASE else case.spec.case_id
        answers.append(auto_segment(url, model, image_id, folder))
        scores.append(score(case, answers[-1]))
        print(f"  {scores[-1]}", flush=True)
    return answers, scores


def _report(scores: list[Score], figure: Path) -> list[str]:
    """Prints the summary; returns what is wrong."""
    lesions = [s.dice for s in scores if s.true_ml > 0]
    wrong = failures(scores)
    print(f"Mean Dice {sum(lesions) / len(lesions):.2f} over {len(lesions)} lesions; figure: {figure}")
    print("The masks are right." if not wrong else "NOT right: " + "; ".join(wrong))
    return wrong


def _serve(server: LabelServer) -> None:
    """Prints where to look and waits for Ctrl-C."""
    print(f"""
Still serving; Ctrl-C stops the server. Research use only, not a medical device.
  3D Slicer   module MONAI Label, server address  {server.url}
  API         {server.url}/            (every route, to try in the browser)
  What is on  {server.url}/info/
""", flush=True)  # fmt: skip
    try:
        server.watch()
    except KeyboardInterrupt:
        print("\nStopped.")


if __name__ == "__main__":
    sys.exit(main())
