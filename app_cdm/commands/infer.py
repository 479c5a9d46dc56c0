"""`infer`: masks of images, one or a cohort, by one process or several; each written whole beside a JSON of its scores."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

from app_cdm.cohort.cases import Case, check_names, find_cases
from app_cdm.cohort.claims import STALE_S, Claims
from app_cdm.cohort.outcomes import Failure, Outcomes
from app_cdm.cohort.pacs import Pacs, parse_query
from app_cdm.cohort.run import Run, begin_or_join
from app_cdm.cohort.summary import describe, read_lines, write_summary
from app_cdm.cohort.worker import Worker
from app_cdm.commands.environment import PASSWORD, Launch, cores, read_launch, read_login
from app_cdm.commands.options import add_model, load_model

CLAIMS = ".claims"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, nargs="+", help="images, folders that hold images or DICOM series, or CSV tables")
    source.add_argument("--dicomweb", metavar="URL", help="DICOMweb server whose series are segmented; choose them with --query")
    parser.add_argument("--output", type=Path, required=True, help="folder for <name>_mask, <name>.json and summary.csv")
    parser.add_argument("--format", choices=[".nii.gz", ".nii", ".nrrd", ".png"], help="default: PNG for pictures, else .nii.gz")
    parser.add_argument("--saliency", action="store_true", help="also write <name>_saliency_<class>")
    parser.add_argument(
        "--overwrite", action="store_true", help="segment again what already has a JSON; to continue after a kill, leave it out"
    )
    cohort = parser.add_argument_group("cohorts")
    cohort.add_argument("--image-column", default="image", help="column of a CSV table that names the image (default: %(default)s)")
    cohort.add_argument("--name-column", default="name", help="column that names the output, if there is one (default: %(default)s)")
    cohort.add_argument(
        "--stale-s",
        type=float,
        default=STALE_S,
        help="seconds after which the cases of a process on another machine that gives no sign of life are redone (default: %(default)g)",
    )
    pacs = parser.add_argument_group("DICOMweb server")
    pacs.add_argument("--query", action="append", default=[], metavar="KEYWORD=VALUE", help="such as Modality=MR (repeat for several)")
    pacs.add_argument("--dicomweb-user", help=f"name to log in with; the password is read from the environment variable {PASSWORD}")
    pacs.add_argument("--cache-dir", type=Path, help="where a series lies while it is read (default: the folder for temporary files)")
    pacs.add_argument("--fetch-limit-mb", type=int, default=4096, help="largest series that is fetched, in MiB (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Segments every image, beside other processes that were started with the same options; one that fails is named, the others go on.

    Returns:
        1 if any failed, else 0; among several processes of one launch the first alone says so, lest a launcher kill the others for it.
    """
    launch = read_launch()
    prepare(options, launch)
    pipeline, settings = load_model(options)
    cases = _find(options)
    names = [case.name for case in cases]
    outcomes = Outcomes(options.output, pipeline.class_names, options.format, options.saliency)
    asked = Run.of(pipeline.model_version, settings, outcomes)
    with _ends_on_sigterm(), Claims(options.output / CLAIMS, options.stale_s) as claims:
        is_begun = begin_or_join(asked, names, outcomes, claims, launch.identity, options.overwrite)
        if options.overwrite and not (is_begun or launch.identity):
            print("joined the processes that are at it; what is done there is not done again", file=sys.stderr)
        worker = Worker(pipeline, settings, outcomes, claims)
        with tqdm(total=len(cases), desc="infer", unit="image", disable=launch.rank > 0) as bar:
            worker.work(cases, launch.rank * len(cases) // launch.size, lambda name, failure: _report(bar, name, failure))
        claims.tidy(names)
        lines = read_lines(cases, outcomes)
        write_summary(lines, outcomes)
    failed = sum(line.status == "failed" for line in lines)
    if launch.rank > 0:
        return 0
    if len(cases) > 1:
        print("\n".join(describe(lines, outcomes)), file=sys.stderr)
    print(json.dumps({"images": len(cases), "failed": failed, "output": str(options.output)}))
    return 1 if failed else 0


def prepare(options: argparse.Namespace, launch: Launch) -> None:
    """Gives each process of a machine its own GPU, or its share of the cores where the environment does not say how many threads."""
    if launch.size > 1 and options.device in ("auto", "cuda") and torch.cuda.is_available():
        options.device = f"cuda:{launch.local_rank % torch.cuda.device_count()}"
    if launch.local_size > 1 and launch.threads is None:
        torch.set_num_threads(max(1, cores() // launch.local_size))


def _find(options: argparse.Namespace) -> list[Case]:
    if options.dicomweb is None:
        if options.query:
            raise ValueError("--query: chooses series of a DICOMweb server; give --dicomweb, not --input")
        return find_cases(options.input, options.output, options.image_column, options.name_column)
    pacs = Pacs(options.dicomweb, read_login(options.dicomweb_user), options.cache_dir, options.fetch_limit_mb)
    pacs.sweep()
    cases = pacs.find_cases(parse_query(options.query))
    check_names(case.name for case in cases)
    return cases


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Lets a request to end be heard as an exception, so that what this process holds is let go of; its exit code is 143."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(bar: tqdm, name: str, failure: Failure | None) -> None:
    bar.set_postfix_str(name[-40:], refresh=False)
    bar.update()
    if failure is not None and not bar.disable:
        tqdm.write(f"error: {name}: {failure.reason}", file=sys.stderr)
