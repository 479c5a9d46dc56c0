"""The host, started with the options of `lib.serve`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from monailabel.config import settings
from monailabel.main import Main

from app_cdm.commands.environment import USER
from lib.child import stop_trainings
from lib.options import APP_DIR

# Settings of the host that must differ from its defaults; a variable of the same name in the environment wins.
HOST_SETTINGS: dict[str, object] = {
    "MONAI_LABEL_AUTO_UPDATE_SCORING": False,  # else every Next Sample starts a process
    "MONAI_LABEL_TRACKING_ENABLED": False,
}


def serve(options: argparse.Namespace, conf: Mapping[str, str]) -> None:
    """Serves until interrupted.

    Args:
        options: the command line of `lib.serve`.
        conf: the app's `--conf` values.
    """
    prepare_host(options)
    host = Main()
    # A folder of its own, which nobody else on the machine can look into, for uploads and what the host forgets.
    with tempfile.TemporaryDirectory(prefix="app_cdm-") as own:
        tempfile.tempdir = own
        try:
            host.action_start_server(host.args_parser().parse_args(host_arguments(options, conf)))
        finally:
            tempfile.tempdir = None
            stop_trainings()


def prepare_host(options: argparse.Namespace) -> None:
    """Sets what the host reads from its environment, for this process and for those it starts."""
    wanted = HOST_SETTINGS | {
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": options.dicomweb_refresh_s,
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(options.cache_dir.expanduser().resolve() / "dicomweb"),
    }
    if options.dicomweb_user:
        os.environ[USER] = options.dicomweb_user
        settings.MONAI_LABEL_DICOMWEB_USERNAME = options.dicomweb_user
    for name, value in wanted.items():
        if name not in os.environ:
            setattr(settings, name, value)
            os.environ[name] = str(value)
    os.environ.setdefault("MONAI_LABEL_RELOAD_APP_LIB", "false")  # this package is imported already
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(APP_DIR), os.environ.get("PYTHONPATH")]))
    options.cache_dir.expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
    # The host looks before it makes them, and fails where two servers start at the same moment.
    for name in ("logs", "bin", "model"):
        (APP_DIR / name).mkdir(exist_ok=True)
    # DICOM SEG tools live beside the interpreter, and the host looks for them on PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def host_arguments(options: argparse.Namespace, conf: Mapping[str, str]) -> list[str]:
    """The command line of `monailabel start_server`."""
    arguments = ["start_server", "--app", str(APP_DIR), "--studies", options.studies, "--host", options.host, "--port", str(options.port)]
    arguments += ["--verbose", "DEBUG" if options.verbose else "INFO"]
    for key, value in conf.items():
        arguments += ["--conf", key, value]
    return arguments
