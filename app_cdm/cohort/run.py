"""The run that an output folder belongs to: one model and one way to use it, whoever works on it and however often it is taken up."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app_cdm.cohort.claims import Claim, Claims
from app_cdm.cohort.outcomes import Outcomes
from app_cdm.config import SegmentationSettings
from app_cdm.data.writing import write_atomically

FILE = "run.json"
LOCK = "/run"  # no case has this name
LOCK_POLL_S = 0.1


@dataclass(frozen=True)
class Run:
    """What all results of a folder share.

    Attributes:
        model_version: of the weights.
        settings: of the segmentation, as plain values.
        format: of masks; None for that of the image's kind.
        saliency: whether maps are written.
    """

    model_version: str
    settings: dict[str, Any]
    format: str | None
    saliency: bool

    @classmethod
    def of(cls, model_version: str, settings: SegmentationSettings, outcomes: Outcomes) -> Run:
        """The run that this process was asked for."""
        return cls(model_version, settings.to_dict(), outcomes.suffix, outcomes.with_saliency)

    def differences(self, other: Run) -> list[str]:
        """In what another run differs, in words."""
        ours, theirs = asdict(self), asdict(other)
        settings, others = _flat(ours.pop("settings")), _flat(theirs.pop("settings"))
        pairs = [(name, theirs[name], ours[name]) for name in ours]
        pairs += [(name, others.get(name), settings.get(name)) for name in sorted(settings.keys() | others.keys(), key=_order)]
        return [f"{name} {there!r}, now {here!r}" for name, there, here in pairs if there != here]


def begin_or_join(run: Run, names: Sequence[str], outcomes: Outcomes, claims: Claims, launch: str, overwrite: bool) -> bool:
    """Joins the run that other processes of the folder are at, or begins one: takes up the folder's last, or replaces it.

    Who begins gives what failed before another chance and, to overwrite, removes the results of its cases. Other settings replace those of
    a folder only where all its results are of these cases, lest it hold results of both. Processes of one launch, also those that the
    launcher has started again, belong to one run.

    Args:
        run: what this process was asked for.
        names: of its cases.
        outcomes: of the folder.
        claims: of the folder.
        launch: tells launches of several processes apart; empty for a process that was started by itself.
        overwrite: whether results that are there are replaced.

    Returns:
        Whether the run was begun, not joined.

    Raises:
        ValueError: the folder holds another run, and it is not to be replaced, or others are at it, or it has results of other cases.
    """
    while not isinstance(lock := claims.take(LOCK, attempts=None), Claim):
        time.sleep(LOCK_POLL_S)
    try:
        before = _read(claims.folder / FILE)
        differences = run.differences(before[0]) if before else _old_differences(run, names, outcomes)
        is_joined = before is not None and (claims.others() > 0 or launch == before[1] != "")
        outside = outcomes.find_other(names) if differences and not is_joined else None
        if differences and (is_joined or outside is not None or not overwrite):
            advice = "other processes are at it: wait for them, or" if is_joined else "replace them with --overwrite, or"
            if outside is not None:
                advice = f"that of {outside!r}, which is not among these cases, would stay:"
            raise ValueError(
                f"{outcomes.folder} holds results of another run ({'; '.join(differences[:4])}): {advice} give another --output"
            )
        if not is_joined:
            if overwrite:
                outcomes.forget_results(names)
            outcomes.forget_failures(names)
            write_atomically(claims.folder / FILE, json.dumps({**asdict(run), "launch": launch}, indent=1).encode())
        claims.join()
        return not is_joined
    finally:
        claims.forget(lock)


def _read(file: Path) -> tuple[Run, str] | None:
    """Run and launch that a folder belongs to; None of a folder without."""
    try:
        values = json.loads(file.read_text())
        return Run(values["model_version"], values["settings"], values["format"], values["saliency"]), values["launch"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: remove it, and the results beside it are taken for what their own files say") from error


def _old_differences(run: Run, names: Sequence[str], outcomes: Outcomes) -> list[str]:
    """In what the results differ that an earlier version has left, which wrote no record of its runs."""
    for name in names:
        values = outcomes.result(name)
        if values is not None:
            old = Run(values.get("model_version", ""), values.get("settings", {}), run.format, run.saliency)
            differences = run.differences(old)
            if differences:
                return [f"{name}: {item}" for item in differences]
    return []


def _order(name: str) -> tuple[bool, str]:
    """The method before what follows from it."""
    return "." in name, name


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by name, those of saliency and mask with their concern."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update({f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {name: value})
    return flat
