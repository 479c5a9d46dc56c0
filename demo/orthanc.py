"""A PACS for trying things out: Orthanc from the Debian packages, on this machine only, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import requests

from demo.parent import die_with_parent
from demo.server import find_free_port, is_port_free

INSTALL = "sudo apt-get install orthanc orthanc-dicomweb"
PROGRAMS = ("/usr/sbin/Orthanc", "/usr/bin/Orthanc", "/usr/local/sbin/Orthanc")
PLUGINS = ("/usr/share/orthanc/plugins/libOrthancDicomWeb.so", "/usr/local/share/orthanc/plugins/libOrthancDicomWeb.so")
SHIM = Path(__file__).with_name("loopback.c")
START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0


class OrthancError(RuntimeError):
    """Orthanc is not installed, does not start or does not store; the message says what to do."""


def find_orthanc() -> tuple[str, str]:
    """Paths of the program and of its DICOMweb plugin.

    Raises:
        OrthancError: one of them is not installed.
    """
    program = shutil.which("Orthanc") or next((path for path in PROGRAMS if os.access(path, os.X_OK)), None)
    plugin = next((path for path in PLUGINS if Path(path).exists()), None)
    missing = [name for name, found in (("orthanc", program), ("orthanc-dicomweb", plugin)) if found is None]
    if program is None or plugin is None:
        raise OrthancError(f"Debian package {' and '.join(missing)} not found; install with: {INSTALL}")
    return program, plugin


class Orthanc:
    """Runs Orthanc while the context lasts.

    Its older versions listen on all interfaces whatever they are told, so a few lines of C are compiled and preloaded
    that bind to the loopback address instead. Without a C compiler it runs as it is and refuses foreign peers by itself.

    Args:
        folder: for configuration, log and stored studies; made if absent, and kept.
        port: port of its HTTP server; 0 takes a free one.
        users: name -> password; empty asks nobody.

    Raises:
        OrthancError: it is not installed, the port is taken, or it does not answer within `START_LIMIT_S`.
    """

    def __init__(self, folder: Path, port: int = 0, users: dict[str, str] | None = None) -> None:
        self._program, self._plugin = find_orthanc()
        self._port = port or find_free_port()
        self._folder, self._users = folder, users or {}
        self.address = f"http://127.0.0.1:{self._port}"
        self.url = f"{self.address}/dicom-web"
        self.log = folder / "orthanc.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Orthanc:
        if not is_port_free(self._port):
            raise OrthancError(f"port {self._port} is in use by another program: stop it, or choose another port for Orthanc")
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "orthanc.json"
        configuration.touch(mode=0o600)  # it holds the passwords
        configuration.write_text(json.dumps(self._configuration(), indent=2))
        shim = self._build_shim()
        environment = dict(os.environ) | ({"LD_PRELOAD": str(shim)} if shim else {})
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, str(configuration)], cwd=self._folder, env=environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def is_loopback_only(self) -> bool:
        """Whether nothing outside this machine can even connect, as the kernel sees it."""
        found = {address for address, port in listening() if port == self._port}
        return bool(found) and found <= {"127.0.0.1", "::1"}

    def store(self, files: Iterable[Path]) -> int:
        """Stores DICOM files over its own HTTP API.

        Returns:
            How many there were.

        Raises:
            OrthancError: one was refused.
        """
        count = 0
        with requests.Session() as session:
            for file in files:
                reply = session.post(f"{self.address}/instances", data=file.read_bytes(), auth=self._auth(), timeout=60)
                if not reply.ok:
                    raise OrthancError(f"Orthanc refused {file.name}: {reply.status_code} {reply.text[:200]}")
                count += 1
        return count

    def stop(self) -> None:
        """Ends the program, by force if it must be."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _configuration(self) -> dict[str, object]:
        storage = self._folder / "storage"
        return {
            "Name": "app_cdm demo",
            "StorageDirectory": str(storage),
            "IndexDirectory": str(storage),
            "HttpPort": self._port,
            "HttpBindAddresses": ["127.0.0.1"],  # understood by newer versions only
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(self._users),
            "RegisteredUsers": self._users,
            "DicomServerEnabled": False,
            "Plugins": [self._plugin],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }

    def _build_shim(self) -> Path | None:
        """Compiles what keeps Orthanc on the loopback interface; None where there is no compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None or sys.platform != "linux":
            return None
        shim = (self._folder / "loopback.so").resolve()
        done = subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(SHIM), "-ldl"], capture_output=True, check=False)
        return shim if done.returncode == 0 else None

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if requests.get(f"{self.url}/studies", params={"limit": 1}, auth=self._auth(), timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
        raise OrthancError(f"Orthanc does not answer at {self.url}; end of {self.log}:\n{tail}")

    def _auth(self) -> tuple[str, str] | None:
        return next(iter(self._users.items()), None)


def listening() -> set[tuple[str, int]]:
    """Address and port of every TCP socket of this machine that listens; empty where the kernel does not tell."""
    found = set()
    for table, wildcard in (("tcp", "0.0.0.0"), ("tcp6", "::")):
        file = Path("/proc/net") / table
        for line in file.read_text().splitlines()[1:] if file.exists() else []:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                address, port = local.split(":")
                names = {"0100007F": "127.0.0.1", "0" * 24 + "01000000": "::1", "0" * len(address): wildcard}
                found.add((names.get(address, address), int(port, 16)))
    return found
