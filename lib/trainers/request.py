"""What a Train click may ask for, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app_cdm.config import SettingsError
from app_cdm.training.retrain import RetrainSettings
from lib.configs.segmentation import read_device
from lib.options import Device

STAGES: dict[str, tuple[str, ...]] = {
    "all": ("classifier", "diffusion", "cldf", "student"),
    "classifier": ("classifier",),
    "diffusion": ("diffusion",),
    "classifier and diffusion": ("classifier", "diffusion"),
    "cldf and student": ("cldf", "student"),
    "cldf": ("cldf",),
    "student": ("student",),
}
STARTS = ("published", "scratch")
OPTIONS = ("stages", "start", "minutes", "epochs", "force", "device", "seed")
MINUTES = 30.0


@dataclass(frozen=True)
class TrainRequest:
    """One training.

    Attributes:
        settings: stages, start and budget.
        force: publish also what is worse on held-out tags.
        device: where to train.
        seed: of everything random; not among the options that viewers show.
    """

    settings: RetrainSettings
    force: bool = False
    device: Device = "auto"
    seed: int = 0


def option_table(has_cuda: bool) -> dict[str, Any]:
    """What viewers show beside the Train button."""
    return {
        "stages": list(STAGES),
        "start": list(STARTS),
        "minutes": MINUTES,
        "epochs": 0.0,
        "force": False,
        "device": ["auto", "cuda", "cpu"] if has_cuda else ["auto", "cpu"],
    }


def read_train_request(request: dict[str, Any]) -> TrainRequest:
    """Reads a request as viewers send it; what is not of `OPTIONS` is left alone, because viewers send more.

    Raises:
        SettingsError: a value is not allowed.
    """
    given = {key: value for key, value in request.items() if value not in (None, "")}
    stages, start = given.get("stages", "all"), given.get("start", STARTS[0])
    if isinstance(stages, str) and stages not in STAGES:
        raise SettingsError(f"stages = {stages!r}: must be one of {list(STAGES)}")
    if start not in STARTS:
        raise SettingsError(f"start = {start!r}: must be one of {list(STARTS)}")
    settings = RetrainSettings(
        stages=STAGES[stages] if isinstance(stages, str) else stages,
        start=start,
        minutes=_number("minutes", given.get("minutes", MINUTES)),
        epochs=_number("epochs", given.get("epochs", 0.0)),
    )
    if settings.minutes <= 0 and not settings.epochs:
        raise SettingsError(f"minutes = {settings.minutes:g}: must be more than 0, or send epochs")
    return TrainRequest(settings, _flag("force", given.get("force", False)), read_device(given.get("device")), _seed(given.get("seed", 0)))


def _number(name: str, value: Any) -> float:
    try:
        return float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"{name} = {value!r}: must be a number") from None


def _seed(value: Any) -> int:
    seed = _number("seed", value)
    if not 0 <= seed < 2**31 or seed != int(seed):
        raise SettingsError(f"seed = {value!r}: must be a whole number in [0, {2**31})")
    return int(seed)


def _flag(name: str, value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in words:
        raise SettingsError(f"{name} = {value!r}: must be true or false")
    return words[str(value).lower()]
