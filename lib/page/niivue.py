"""The page's one foreign module, NiiVue, as its npm package ships it: `python -m lib.page.niivue` fetches and checks it.

The file lies in the repository, so that the page works offline; this is how it came there and how it is renewed.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app_cdm.data.writing import write_atomically

FOLDER = Path(__file__).resolve().parent / "vendor"


class VendorError(RuntimeError):
    """The package cannot be fetched, or is not the one that is expected."""


@dataclass(frozen=True)
class Vendored:
    """One file of an npm package.

    Attributes:
        package: its name.
        version: exactly this one.
        member: path of the file inside the package.
        name: of the file in `lib/page/vendor/`.
        sha256: of its content.
    """

    package: str
    version: str
    member: str
    name: str
    sha256: str


NIIVUE = Vendored(
    "@niivue/niivue", "0.69.0", "dist/index.js", "niivue.js", "d6c2be4feb1ad53b2ac76b4196da8d8fd2263b662b511c55ca0fd127eb6a6532"
)


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def fetch(wanted: Vendored) -> bytes:
    """Asks npm for the package and takes the file out of it.

    Raises:
        VendorError: npm is missing or fails, or the file differs from the one expected.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{wanted.package}@{wanted.version}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise VendorError("npm was not found: install it (Debian: npm)") from error
        except subprocess.CalledProcessError as error:
            raise VendorError(f"npm could not fetch {wanted.package}@{wanted.version}: {error.stderr.strip()}") from error
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as package:
            member = package.extractfile(f"package/{wanted.member}")
            content = member.read() if member else b""
    if digest(content) != wanted.sha256:
        raise VendorError(f"{wanted.package}@{wanted.version}: {wanted.member} has SHA-256 {digest(content)}, expected {wanted.sha256}")
    return content


def main(arguments: list[str] | None = None) -> int:
    """Fetches the file; returns the exit code."""
    argparse.ArgumentParser(prog="python -m lib.page.niivue", description=__doc__).parse_args(arguments)
    try:
        write_atomically(FOLDER / NIIVUE.name, fetch(NIIVUE))
    except VendorError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{NIIVUE.package} {NIIVUE.version} in {FOLDER / NIIVUE.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
