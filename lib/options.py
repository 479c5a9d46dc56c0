"""The app's start options: `--conf` strings become one typed, validated object here and nowhere else."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from lib.dicomweb.modalities import ALL, read_modalities

Device = Literal["auto", "cuda", "cpu"]

APP_DIR = Path(__file__).resolve().parent.parent
DEFAULT_CACHE_DIR = Path.home() / ".cache" / "app_cdm"
CLASS_NAME = r"\w[\w .-]{0,63}"


class OptionError(ValueError):
    """A start option is not allowed; the message names option, value and what is allowed."""


@dataclass(frozen=True)
class AppOptions:
    """Everything that is chosen when the server starts.

    Attributes:
        model_dir: folder whose subfolders are published models.
        model: name of the model folder to serve; None takes the first by name.
        device: where the networks run unless a request says otherwise; `auto` is a GPU where there is one.
        cache_dir: where files derived from DICOM series are kept.
        upload_limit_mb: largest request body accepted, in MiB.
        waiting_requests: inference requests admitted at once; the network itself serves one at a time.
        host: address the server listens on, if known; on a loopback address only loopback `Host` headers are answered.
        allow_origins: web origins, besides the server's own, that a browser may call from.
        classes: what can be tagged, alphabetically; empty takes the classes of the model.
        tags_file: where tags are kept; None keeps them with the studies, see `lib.tags.location`.
        modalities: series that a DICOMweb server is asked for; empty for every kind of image.
    """

    model_dir: Path
    model: str | None = None
    device: Device = "auto"
    cache_dir: Path = DEFAULT_CACHE_DIR
    upload_limit_mb: int = 1024
    waiting_requests: int = 4
    host: str | None = None
    allow_origins: tuple[str, ...] = field(default_factory=tuple)
    classes: tuple[str, ...] = field(default_factory=tuple)
    tags_file: Path | None = None
    modalities: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise OptionError(f"device = {self.device!r}: must be one of {list(get_args(Device))}")
        if self.upload_limit_mb < 1:
            raise OptionError(f"upload_limit_mb = {self.upload_limit_mb}: must be at least 1")
        if self.waiting_requests < 1:
            raise OptionError(f"waiting_requests = {self.waiting_requests}: must be at least 1")
        if self.model is not None and (Path(self.model).name != self.model or self.model.startswith(".")):
            raise OptionError(f"models = {self.model!r}: must be the name of a folder in {self.model_dir}, not a path")
        for origin in self.allow_origins:
            if not re.fullmatch(r"https?://[^/?#*\s]+", origin):
                raise OptionError(f"allow_origins = {origin!r}: must be an origin such as https://labels.example.org")
        if list(self.classes) != sorted(set(self.classes)) or not all(re.fullmatch(CLASS_NAME, name) for name in self.classes):
            raise OptionError(f"classes = {self.classes}: must be distinct names of up to 64 letters, digits, spaces, '.', '_' and '-'")

    @property
    def upload_limit_bytes(self) -> int:
        """Largest request body accepted, in bytes."""
        return self.upload_limit_mb * 1024 * 1024

    @property
    def is_loopback(self) -> bool:
        """Whether the server is known to listen on this machine only."""
        return self.host is not None and is_loopback(self.host)

    @classmethod
    def from_conf(cls, app_dir: str | Path, conf: dict[str, str] | None) -> AppOptions:
        """Reads the strings of `--conf key value`; keys of other purposes are left alone.

        Args:
            app_dir: the app's folder; models are looked for in its `model/` unless `model_dir` says otherwise.
            conf: keys `model_dir`, `models`, `device`, `cache_dir`, `upload_limit_mb`, `waiting_requests`, `host`,
                `allow_origins`, `classes` and `modality` (comma separated), `tags_file`.

        Raises:
            OptionError: a value is not allowed.
        """
        conf = {key: value.strip() for key, value in (conf or {}).items() if isinstance(value, str) and value.strip()}
        return cls(
            model_dir=Path(conf.get("model_dir", Path(app_dir) / "model")),
            model=conf.get("models"),
            device=conf.get("device", "auto"),  # type: ignore[arg-type]  # checked on construction
            cache_dir=Path(conf.get("cache_dir", DEFAULT_CACHE_DIR)),
            upload_limit_mb=_integer("upload_limit_mb", conf, 1024),
            waiting_requests=_integer("waiting_requests", conf, 4),
            host=conf.get("host"),
            allow_origins=tuple(item.strip().rstrip("/") for item in conf.get("allow_origins", "").split(",") if item.strip()),
            classes=tuple(sorted(item.strip() for item in conf.get("classes", "").split(",") if item.strip())),
            tags_file=Path(conf["tags_file"]) if "tags_file" in conf else None,
            modalities=_modalities(conf.get("modality", ALL)),
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host if ":" in host else socket.inet_ntoa(socket.inet_aton(host))).is_loopback
    except (OSError, ValueError):
        return False


def _integer(name: str, conf: dict[str, str], default: int) -> int:
    try:
        return int(conf.get(name, default))
    except ValueError as error:
        raise OptionError(f"{name} = {conf[name]!r}: must be a whole number") from error


def _modalities(text: str) -> tuple[str, ...]:
    try:
        return read_modalities(text)
    except ValueError as error:
        raise OptionError(str(error)) from error
