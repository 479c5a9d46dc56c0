"""Starts the label server: `python -m lib.serve --studies FOLDER_OR_URL`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from app_cdm.commands.environment import PASSWORD, read_login
from lib.dicomweb.modalities import ALL
from lib.options import APP_DIR, DEFAULT_CACHE_DIR, AppOptions, OptionError
from lib.tags.location import is_url

FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.serve", description="Label server for 3D Slicer and OHIF; research use only.")
    parser.add_argument("--studies", required=True, help="folder of images and DICOM series, or the URL of a DICOMweb server")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--model", help="name of the model folder to serve (default: the first by name)")
    parser.add_argument("--model-dir", type=Path, default=APP_DIR / "model", help="folder of published models (default: model/)")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu (default: %(default)s)")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE_DIR,
        help="for what is derived from the studies; of a DICOMweb server also its series and tags (default: %(default)s)",
    )
    parser.add_argument("--classes", default="", help="classes that can be tagged, comma separated (default: those of the model)")
    parser.add_argument(
        "--tags-file", type=Path, help="where tags are kept (default: with the studies in .app_cdm/; of a DICOMweb server in --cache-dir)"
    )
    parser.add_argument("--upload-limit-mb", type=int, default=1024, help="largest request body, in MiB (default: %(default)s)")
    parser.add_argument("--allow-origin", action="append", default=[], help="web origin that may call the server (repeat for several)")
    pacs = parser.add_argument_group("DICOMweb server as studies")
    pacs.add_argument("--modality", default=ALL, help="series to list: MR, or MR,CT, or all kinds of images (default: %(default)s)")
    pacs.add_argument("--dicomweb-user", help=f"name to log in with; the password is read from the environment variable {PASSWORD}")
    pacs.add_argument("--dicomweb-refresh-s", type=int, default=1, help="seconds for which a list of series is kept (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="log at DEBUG level")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until interrupted; returns the exit code (2 for wrong usage).

    The host and all that it brings take ten seconds to import, and are not until the options are known to be right.
    """
    parser = argument_parser()
    options = parser.parse_args(arguments)
    if not options.host.strip():
        parser.error("--host '': must be an address of this machine, such as 127.0.0.1; an empty one would mean all of them")
    conf = app_conf(options)
    try:
        AppOptions.from_conf(APP_DIR, conf)
    except OptionError as error:
        parser.error(str(error))
    if is_url(options.studies):
        check_pacs(parser, options)
    elif not Path(options.studies).is_dir():
        parser.error(f"--studies {options.studies!r}: no such folder")
    importlib.import_module("lib.host").serve(options, conf)
    return 0


def check_pacs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a message where the options for a DICOMweb server cannot be followed."""
    if "@" in urlsplit(options.studies).netloc:
        parser.error(f"--studies: no name and password in the URL, which logs show; give --dicomweb-user, and the password in {PASSWORD}")
    try:
        read_login(options.dicomweb_user)
    except ValueError as error:
        parser.error(str(error))
    if "Modality" in os.environ.get(FILTER, ""):
        parser.error(f"{FILTER}: say with --modality which modalities to list; other conditions may stay")
    if options.dicomweb_refresh_s < 0:
        parser.error(f"--dicomweb-refresh-s {options.dicomweb_refresh_s}: must not be negative")


def app_conf(options: argparse.Namespace) -> dict[str, str]:
    """The app's `--conf` values, as `AppOptions.from_conf` reads them."""
    conf = {
        "model_dir": str(options.model_dir.resolve()),
        "models": options.model or "",
        "device": options.device,
        "cache_dir": str(options.cache_dir.expanduser().resolve()),
        "upload_limit_mb": str(options.upload_limit_mb),
        "host": options.host,
        "allow_origins": ",".join(options.allow_origin),
        "classes": options.classes,
        "tags_file": str(options.tags_file.expanduser().resolve()) if options.tags_file else "",
        "modality": options.modality,
    }
    return {key: value for key, value in conf.items() if value}


if __name__ == "__main__":
    sys.exit(main())
