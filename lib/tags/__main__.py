"""Tags on the command line: `python -m lib.tags import|export|history|backup --studies FOLDER_OR_URL ...`."""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import requests

from app_cdm.data.writing import write_atomically
from lib.models import known_class_names
from lib.options import APP_DIR, DEFAULT_CACHE_DIR, AppOptions, OptionError
from lib.results.errors import NoSpaceError
from lib.server.checks import check_json_object
from lib.server.errors import UnusableRequestError
from lib.tags.book import TagBook
from lib.tags.images import FolderImages
from lib.tags.location import is_url, tags_file
from lib.tags.record import UNKNOWN_USER
from lib.tags.store import TagStore
from lib.tags.tables import ImportOptions, export_csv, export_json, import_table
from lib.tags.validation import PROBLEMS

IMPORT_TIMEOUT_S = 600  # a PACS may have to send series


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--studies", default="", help="folder or DICOMweb URL, as given to the server")
    common.add_argument("--tags-file", default="", help="the store, if the server was started with this option")
    common.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR, help="(default: %(default)s)")
    common.add_argument("--classes", default="", help="classes that can be tagged, comma separated (default: those of the model)")
    common.add_argument("--model-dir", type=Path, default=APP_DIR / "model", help="folder of published models (default: model/)")
    common.add_argument("--model", default="", help="name of the model folder (default: the first by name)")
    parser = argparse.ArgumentParser(prog="python -m lib.tags", description="Image-level tags; the server may run meanwhile.")
    commands = parser.add_subparsers(dest="command", required=True)
    reader = commands.add_parser("import", parents=[common], help="store the tags of a CSV or JSON table: all or none")
    reader.add_argument("table", type=Path)
    reader.add_argument("--server", help="a label server that runs, such as http://127.0.0.1:8000, which knows the images of a PACS")
    reader.add_argument("--split", help="only rows with this value in the column split")
    reader.add_argument("--id-suffix", default="", help="what image ids have after the names in the table, such as _flair")
    reader.add_argument("--columns", default="", help='class to 0/1 column, as JSON: {"lesion": "has_lesion"}, or to COLUMN=VALUE')
    reader.add_argument("--exclude", metavar="COLUMN", help="leave out rows with 1 in this column")
    reader.add_argument("--user", help="who imports (default: the name of the login)")
    reader.add_argument("--dry-run", action="store_true", help="check everything, store nothing")
    writer = commands.add_parser("export", parents=[common], help="write every tag")
    writer.add_argument("--format", choices=("csv", "json"), default="csv")
    writer.add_argument("--output", type=Path, help="file (default: standard output)")
    history = commands.add_parser("history", parents=[common], help="what was done to an image's tags, one JSON object a line")
    history.add_argument("image")
    history.add_argument("--class", dest="class_name", help="of this class only")
    backup = commands.add_parser("backup", parents=[common], help="copy the store with its history into a new file")
    backup.add_argument("target", type=Path)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (1: refused or failed, 2: wrong usage)."""
    logging.basicConfig(level=logging.WARNING)
    options = argument_parser().parse_args(arguments)
    try:
        sys.stdout.write(run(options))
    except (*PROBLEMS, OptionError, NoSpaceError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def run(options: argparse.Namespace) -> str:
    """Runs one command and returns what it prints."""
    if options.command == "import" and options.user is None:
        options.user = login_name()
    if options.command == "import" and options.server:
        return import_by_server(options)
    book = open_book(options)
    if options.command == "import":
        columns = check_json_object("columns", options.columns)
        chosen = ImportOptions(options.user, options.split, options.id_suffix, columns, options.dry_run, options.exclude)
        return json.dumps(import_table(book, options.table.name, options.table.read_bytes(), chosen)) + "\n"
    if options.command == "export":
        text = export_csv(book) if options.format == "csv" else export_json(book)
        if options.output is None:
            return text
        write_file(options.output, text)
        return ""
    if options.command == "backup":
        book.store.back_up(options.target)
        return ""
    events = book.store.history(options.image, options.class_name)
    return "".join(json.dumps(event.to_dict(), ensure_ascii=False) + "\n" for event in events)


def login_name() -> str:
    """Who runs the command; `unknown` where the user's number has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return UNKNOWN_USER


def write_file(path: Path, text: str) -> None:
    """Writes a file in one step; a pipe or a device stays what it is."""
    if path.exists() and not path.is_file():
        path.write_text(text)
    else:
        write_atomically(path.resolve(), text.encode())


def import_by_server(options: argparse.Namespace) -> str:
    """Has a running label server store the table.

    Raises:
        UnusableRequestError: it refuses, or there is none.
    """
    params = {name: getattr(options, name) for name in ("split", "id_suffix", "columns", "dry_run", "exclude", "user")}
    try:
        with options.table.open("rb") as file:
            url = f"{options.server.rstrip('/')}/tags/import"
            reply = requests.post(url, params=params, files={"file": (options.table.name, file)}, timeout=IMPORT_TIMEOUT_S)
    except requests.RequestException as error:
        raise UnusableRequestError(f"--server {options.server!r}: no answer ({error})") from error
    if not reply.ok:
        raise UnusableRequestError(f"{options.server}: {reply.status_code} {reply.text}")
    return reply.text + "\n"


def open_book(options: argparse.Namespace) -> TagBook:
    """The tags of some studies.

    Raises:
        UnusableRequestError: there is no such folder or store, or an import is wanted into a DICOMweb server's.
    """
    conf = {"classes": options.classes, "models": options.model, "model_dir": str(options.model_dir), "tags_file": options.tags_file}
    chosen = AppOptions.from_conf(APP_DIR, conf)
    path = tags_file(options.studies, options.cache_dir, chosen.tags_file)
    folder = Path(options.studies)
    if is_url(options.studies):
        if options.command == "import":
            raise UnusableRequestError("images of a DICOMweb server are known to its label server only: name it with --server")
        folder = path.parent
    elif not folder.is_dir():
        raise UnusableRequestError(f"--studies {options.studies!r}: no such folder")
    if options.command != "import" and not path.is_file():
        raise UnusableRequestError(f"no tags yet: there is no {path}")
    return TagBook(TagStore(path), FolderImages(folder), lambda: known_class_names(chosen))


if __name__ == "__main__":
    sys.exit(main())
