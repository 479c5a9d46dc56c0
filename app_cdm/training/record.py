"""What a run must be able to answer later."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from typing import Any

from app_cdm.data.dataset import TaggedSlices
from app_cdm.data.tags import PRESENT, TagTable
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.settings import TrainSettings
from app_cdm.training.stage import LATER_STAGES

RESUMABLE = ("classifier", "diffusion")  # may be continued for more steps, so their number is not part of a run's identity


def run_record(
    tables: Sequence[TagTable], settings: TrainSettings, data: TaggedSlices, initial: CDMPipeline | None = None
) -> dict[str, Any]:
    """What a run must be able to answer later: settings, tags, lineage, versions, and an id made of the first three."""
    tag_hash = hashlib.sha256("".join(sorted(table.digest() for table in tables)).encode()).hexdigest()
    plain = settings.to_dict()
    # Later stages know themselves what they depend on, see `stage_id`.
    identity = {name: value for name, value in plain.items() if name not in LATER_STAGES}
    identity |= {name: {**plain[name], "num_steps": 0} for name in RESUMABLE} | {"num_threads": 0}
    parts = [identity, tag_hash] + ([initial.model_version] if initial else [])
    run_id = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    present = (data.states == PRESENT).sum(0).tolist()
    return {
        "run_id": run_id,
        "parent": {"model_version": initial.model_version, **dict(initial.config.training)} if initial else None,
        "seed": settings.seed,
        "tag_set_sha256": tag_hash,
        "num_images": len(data.image_ids),
        "num_slices": len(data.slices),
        "num_present_slices": dict(zip(data.class_names, present, strict=True)),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "monai", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "settings": plain,
    }


def stage_id(*parts: object) -> str:
    """Hash of all that a later stage depends on: its checkpoints are of use to no other."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
