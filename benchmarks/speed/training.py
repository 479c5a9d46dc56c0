"""Training steps of the diffusion model against a plain diffusers loop of the same network, in turns; waiting, and resuming."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch.utils.flop_counter import FlopCounterMode

from app_cdm.data.dataset import TaggedSlices, load_tagged_slices
from app_cdm.data.tags import read_tags
from app_cdm.diffusion.process import patchify
from app_cdm.networks.condition import class_weights_from_states
from app_cdm.networks.presets import build_condition_embedding, build_scheduler, build_unet
from app_cdm.training.loop import TrainingLoop
from app_cdm.training.run import TaggedFolder
from app_cdm.training.settings import TrainSettings
from app_cdm.training.tasks import ConditionalDenoiser, DiffusionTask, draw_batch
from benchmarks.speed.floor import matrix_rate
from benchmarks.speed.part import Options

TURNS = 5
STEPS = 4
PATIENTS = 12
DRAWS = 20


def measure(options: Options) -> dict[str, Any]:
    """Slices a second of both loops, share of a step spent on data, of the matrix product's rate, and seconds to resume."""
    settings, data = TrainSettings(), _data(options.data)
    batch = settings.diffusion.batch_size
    with tempfile.TemporaryDirectory(dir=options.run) as folder:
        ours, theirs = _ours(settings, data, Path(folder), options.device), Plain(settings, data, options.device)
        for loop in (ours, theirs):
            loop.advance()  # allocates
        rows: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(TURNS):
            for name, loop in (("ours", ours), ("plain", theirs)):
                began = time.perf_counter()
                for _ in range(STEPS):
                    loop.advance()
                rows[name].append(STEPS * batch / (time.perf_counter() - began))
        began = time.perf_counter()
        ours.save()
        saved_s = time.perf_counter() - began
        began = time.perf_counter()
        again = _ours(settings, data, Path(folder), options.device)
        again.advance()
        resumed_s = time.perf_counter() - began
        if again.step != ours.step + 1:
            raise RuntimeError(f"resumed at step {again.step - 1}, stopped at {ours.step}")
    with FlopCounterMode(display=False) as counter:
        ours.advance()
    return {
        "batch": batch,
        "slices_a_second": rows,
        "data_s": _data_s(ours),
        "step_s": batch / statistics.median(rows["ours"]),
        "multiply_adds": counter.get_total_flops() / 2,
        "matrix_product": matrix_rate(options.device),
        "saved_s": saved_s,
        "resumed_s": resumed_s,
    }


class Plain:
    """A training loop as diffusers' own examples write it, of the same network, loss and EMA; slices as they are, without augmentation."""

    def __init__(self, settings: TrainSettings, data: TaggedSlices, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.unet: UNet2DModel = build_unet(settings.network).to(device).train()
        self.embedding = build_condition_embedding(settings.network, len(data.class_names)).to(device)
        self.scheduler: DDPMScheduler = build_scheduler()
        self.parameters = [*self.unet.parameters(), *self.embedding.parameters()]
        own = settings.diffusion
        self.optimizer = torch.optim.AdamW(self.parameters, own.learning_rate, weight_decay=own.weight_decay)
        self.ema = EMAModel(self.parameters, decay=own.ema_decay, use_ema_warmup=True, power=0.75)
        self.data, self.settings, self.device = data, settings, device

    def advance(self) -> None:
        """One step."""
        batch = self.settings.diffusion.batch_size
        index = torch.randint(len(self.data.slices), (batch,))
        clean = patchify(self.data.slices[index], self.settings.network.patch_size).to(self.device)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (batch,), device=self.device)
        weights = class_weights_from_states(self.data.states[index]).to(self.device)
        embedding = self.embedding(weights, self.data.positions[index].to(self.device))
        output = self.unet(self.scheduler.add_noise(clean, noise, timesteps), timesteps, embedding).sample
        loss = F.mse_loss(output, self.scheduler.get_velocity(clean, noise, timesteps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.diffusion.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)


class Ours(TrainingLoop):
    """The trainer's loop, one step at a time."""

    def advance(self) -> None:
        """One step."""
        self._advance()


def _ours(settings: TrainSettings, data: TaggedSlices, folder: Path, device: torch.device) -> Ours:
    scheduler, count = build_scheduler(), len(data.class_names)
    torch.manual_seed(settings.seed)
    denoiser = ConditionalDenoiser(build_unet(settings.network), build_condition_embedding(settings.network, count))
    task = DiffusionTask(denoiser, scheduler, data, settings)
    loop = Ours(task, settings.diffusion, folder, "speed", settings.seed, device)
    loop.task.module.train()
    return loop


def _data(folder: Path) -> TaggedSlices:
    tags = read_tags(folder / "lgg" / "slices.csv", {"tumor": "has_lesion"}, "train")
    some = TaggedFolder(folder / "lgg" / "images", tags.subset(sorted(tags.tags)[:PATIENTS]), "{image}_flair.nii.gz")
    return load_tagged_slices(some.paths, some.tags, TrainSettings().preprocess)


def _data_s(loop: Ours) -> float:
    """Seconds of drawing and augmenting a batch."""
    assert isinstance(loop.task, DiffusionTask)
    began = time.perf_counter()
    for _ in range(DRAWS):
        draw_batch(loop.task.data, loop.task.settings, loop.generator, loop.settings.batch_size)
    return (time.perf_counter() - began) / DRAWS


def describe(result: dict[str, Any]) -> list[str]:
    """The ratio, and what a step consists of."""
    rows, rate = result["slices_a_second"], result["multiply_adds"] / result["step_s"]
    ratios = [ours / plain for ours, plain in zip(rows["ours"], rows["plain"], strict=True)]
    middle = {name: statistics.median(values) for name, values in rows.items()}
    return [
        f"Steps of {result['batch']} slices of the diffusion model, {len(ratios)} turns of each loop, medians. The plain loop is one as in "
        "diffusers' examples: the same network, loss, AdamW and EMA, slices that need no augmentation.",
        "",
        "| | slices a second |",
        "|---|---|",
        f"| plain diffusers loop | {middle['plain']:.1f} |",
        f"| trainer | {middle['ours']:.1f} |",
        f"| ratio (asked: 1.3), least to most of the turns | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
        "",
        f"- Slices lie in memory; drawing and augmenting a batch takes {1000 * result['data_s']:.0f} ms of a step of "
        f"{1000 * result['step_s']:.0f} ms: {100 * result['data_s'] / result['step_s']:.1f} %.",
        f"- {rate / 1e9:.0f} 10^9 multiply-adds a second, {100 * rate / result['matrix_product']:.0f} % of the rate of a matrix product "
        "just before it, which is not that of *The floor*, measured at another time.",
        f"- A checkpoint takes {result['saved_s']:.2f} s to write; a resumed training has done its first step after "
        f"{result['resumed_s']:.1f} s, the reading of images apart.",
    ]
