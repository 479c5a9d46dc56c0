"""One process of a team: trains a tiny network and writes what it has; started by tests, several at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from app_cdm.networks.presets import build_classifier, build_condition_embedding, build_scheduler, build_unet
from app_cdm.training.loop import TrainingLoop, TrainingTask
from app_cdm.training.tasks import ClassifierTask, ConditionalDenoiser, DiffusionTask
from app_cdm.training.team import Team, join_team
from tests.training.synthetic import NETWORK, blob_slices, tiny_settings

NAMES = ("classifier", "bags", "diffusion")


def make(name: str) -> TrainingTask:
    """A task as a training makes it; "bags" is the classifier with a volume that holds a class somewhere."""
    torch.manual_seed(0)
    data, settings = blob_slices(), tiny_settings()
    if name == "diffusion":
        denoiser = ConditionalDenoiser(build_unet(NETWORK), build_condition_embedding(NETWORK, 2))
        return DiffusionTask(denoiser, build_scheduler(), data, settings)
    if name == "bags":
        data = type(data)(**{**vars(data), "bags": torch.tensor([[0, 1]])})
    return ClassifierTask(build_classifier(NETWORK, 2), build_scheduler(), data, settings)


def run(name: str, folder: Path, steps: int, team: Team) -> dict[str, torch.Tensor]:
    """Weights and averages after some steps; batches of seven cannot be halved."""
    optimizer = tiny_settings(steps).classifier.replace(mixed_precision=False, batch_size=7, num_warmup_steps=2)
    loop = TrainingLoop(make(name), optimizer, folder, "run", 3, torch.device("cpu"), team=team)
    trained: dict[str, torch.Tensor] = {}
    advance = loop._advance

    def noted() -> float:
        loss = advance()
        trained[f"loss.{loop.step:03d}"] = torch.tensor(loss, dtype=torch.float64)
        trained.update({f"weight.{index:03d}": p.detach().clone() for index, p in enumerate(loop.parameters)})
        return loss

    loop._advance = noted  # type: ignore[method-assign]
    loop.run(progress=False)
    return trained | {f"average.{index:03d}": p.detach().clone() for index, p in enumerate(loop.parameters)}


def main() -> None:
    """Trains every network and writes what this process has."""
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    team, _ = join_team("cpu")
    for name in NAMES:
        found = {key: tensor.contiguous() for key, tensor in run(name, folder / name, steps, team).items()}
        save_file(found, folder / f"{name}_{team.rank}_of_{team.size}.safetensors")


if __name__ == "__main__":
    main()
