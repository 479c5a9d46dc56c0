"""The model that ships, and where results of it are kept: those of another model are never taken for its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from app_cdm.pipeline import CDMPipeline

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "model" / "cdm_lgg_flair"


@cache
def runs_of_model() -> Path:
    """Folder of all that was measured of the model as it is now, weights and settings."""
    return ROOT / "runs" / CDMPipeline.from_pretrained(MODEL).model_version
