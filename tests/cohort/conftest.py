"""A tiny model and a small cohort."""

from __future__ import annotations

from pathlib import Path

import pytest

from app_cdm.pipeline import CDMPipeline
from tests.host.studies import head, write_nifti
from tests.host.tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose default method is quick."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", methods=("student", "cdm_saliency"))


@pytest.fixture(scope="session")
def pipeline(model: Path) -> CDMPipeline:
    return CDMPipeline.from_pretrained(model)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve volumes."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(12):
        write_nifti(folder / f"case_{seed:02d}.nii.gz", head(seed))
    return folder
