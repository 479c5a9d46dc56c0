"""`python -m tests.training.train_process STUDY OUTPUT STEPS`: trains on a study of blobs and writes a checkpoint after every step."""

from __future__ import annotations

import sys
from pathlib import Path

from app_cdm.data.tags import read_tags
from app_cdm.training.run import TaggedFolder, train
from tests.training.synthetic import tiny_settings

if __name__ == "__main__":
    study, output, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    settings = tiny_settings(steps)
    often = settings.classifier.replace(checkpoint_every_s=0.0)
    settings = settings.replace(classifier=often, diffusion=settings.diffusion.replace(num_steps=4))
    train([TaggedFolder(study / "images", read_tags(study / "slices.csv"))], settings, output, progress=False)
