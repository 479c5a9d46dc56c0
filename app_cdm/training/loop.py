"""One training loop for every network: bfloat16, clipping, EMA, TensorBoard, exact resumption, one process or several."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.optimization import get_constant_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from app_cdm.training.checkpoint import CHECKPOINT_SUFFIX, check_run, load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.team import Team

logger = logging.getLogger(__name__)
LOG_EVERY = 25


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware there; a CPU that emulates it is three times slower than with float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(value for name, value in torch.cpu.get_capabilities().items() if "bf16" in name)


class TrainingTask(ABC):
    """What differs between networks: the module, and the loss of one step."""

    name: str
    module: nn.Module
    team: Team = Team()

    @abstractmethod
    def loss(self, generator: torch.Generator, batch_size: int) -> torch.Tensor:
        """Loss of a freshly drawn batch; draws from nothing but `generator` and torch's global state.

        Every process of the team draws the whole batch from `generator` alone, computes its own share of it, and returns the loss of the
        whole.
        """


@dataclass(frozen=True)
class Monitor:
    """Watches a network on held-out tags while it trains; the best weights are kept.

    Attributes:
        criterion: of the averaged weights, larger is better; read from tags, never from a mask.
        every_steps: steps between two looks.
        patience: looks without a better value after which training stops.
    """

    criterion: Callable[[nn.Module], float]
    every_steps: int
    patience: int


@dataclass(frozen=True)
class Progress:
    """How far a loop is.

    Attributes:
        name: of the task.
        step: steps done.
        share: of its budget, or of its steps where there is no budget, in [0, 1].
        loss: mean loss.
    """

    name: str
    step: int
    share: float
    loss: float


@dataclass(frozen=True)
class Watch:
    """What ends a training early, and who is told how far it is.

    Attributes:
        budget_s: seconds of training, over all resumptions; None is without limit.
        monitor: stops when held-out tags say so.
        report: called every `LOG_EVERY` steps and at the end.
    """

    budget_s: float | None = None
    monitor: Monitor | None = None
    report: Callable[[Progress], None] | None = None

    def unspent_s(self, elapsed_s: float) -> float:
        """Seconds that a loop which took so long has left to the next one; 0 without a budget."""
        return 0.0 if self.budget_s is None else max(0.0, self.budget_s - elapsed_s)

    def with_more(self, seconds: float) -> Watch:
        """The same with a larger budget, if there is one."""
        return self if self.budget_s is None else replace(self, budget_s=self.budget_s + seconds)


class TrainingLoop:
    """Runs a task to its last step, resuming from the run folder's checkpoint if there is one.

    Args:
        task: network and loss.
        settings: optimisation.
        folder: run folder; holds checkpoint and TensorBoard log.
        run_id: hash of configuration and tags; a checkpoint of another run is refused.
        seed: of every random draw.
        device: where to train.
        watch: what ends it early.
        team: the processes that train together; the main one alone writes and reports.

    Raises:
        ValueError: a batch is smaller than the team.
    """

    def __init__(
        self,
        task: TrainingTask,
        settings: OptimizerSettings,
        folder: Path,
        run_id: str,
        seed: int,
        device: torch.device,
        watch: Watch | None = None,
        team: Team | None = None,
    ) -> None:
        self.team = task.team = team or Team()
        if settings.batch_size < self.team.size:
            raise ValueError(f"{task.name}: a batch of {settings.batch_size} cannot be shared by {self.team.size} processes; use fewer")
        self.watch = watch or Watch()
        self.task, self.settings, self.folder, self.run_id, self.device = task, settings, folder, run_id, device
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{task.name}{CHECKPOINT_SUFFIX}"
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        task.module.to(device)
        self.parameters = list(task.module.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        self.lr_scheduler = get_constant_schedule_with_warmup(self.optimizer, settings.num_warmup_steps)
        self.ema = EMAModel(self.parameters, decay=settings.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        self.step, self.loss_average, self.elapsed_s = 0, 0.0, 0.0
        self.best_value, self.looks_since_best, self.best_weights = -math.inf, 0, list[torch.Tensor]()
        if self.path.exists():
            self._resume()
        self.team.copy_from_main([*self.parameters, *task.module.buffers()])

    def run(self, progress: bool = True) -> nn.Module:
        """Trains and returns the module with its averaged weights."""
        self.task.module.train()
        bar = tqdm(
            total=self.settings.num_steps,
            initial=self.step,
            desc=self.task.name,
            disable=not (progress and self.team.is_main),
            mininterval=5,
        )
        saved_at = now = time.monotonic()
        with self._log() as log, bar:
            while not self.team.from_main(self._is_done):
                value = self._advance()
                self.loss_average = value if self.step == 1 else 0.98 * self.loss_average + 0.02 * value
                bar.update()
                if self.step % LOG_EVERY == 0:
                    log("loss", self.loss_average, self.step)
                    bar.set_postfix(loss=f"{self.loss_average:.4f}")
                    self._report()
                if self.watch.monitor and self.step % self.watch.monitor.every_steps == 0:
                    log("held_out", self._look(self.watch.monitor), self.step)
                self.elapsed_s += time.monotonic() - now
                now = time.monotonic()
                if now - saved_at >= self.settings.checkpoint_every_s:
                    self.save()
                    saved_at = now
        self.save()
        self._report()
        self.team.wait()
        self.ema.copy_to(self.parameters)
        for parameter, best in zip(self.parameters, self.best_weights, strict=False):
            parameter.data.copy_(best)
        return self.task.module.eval()

    @contextmanager
    def _log(self) -> Iterator[Callable[[str, float, int], None]]:
        """Writes a number to TensorBoard; the main process does."""
        if not self.team.is_main:
            yield lambda *_: None
            return
        with SummaryWriter(str(self.folder / "tensorboard" / self.task.name), purge_step=self.step) as log:
            yield log.add_scalar

    def _is_over(self) -> bool:
        """Whether the budget is spent or held-out tags have long been no better."""
        budget, monitor = self.watch.budget_s, self.watch.monitor
        return (budget is not None and self.elapsed_s >= budget) or (monitor is not None and self.looks_since_best >= monitor.patience)

    def _look(self, monitor: Monitor) -> float:
        """Criterion of the averaged weights; they are kept if they are the best so far."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.task.module.eval()
        try:
            value = self.team.from_main(lambda: monitor.criterion(self.task.module))
        finally:
            self.ema.restore(self.parameters)
            self.task.module.train()
        if value > self.best_value:
            self.best_value, self.looks_since_best = value, 0
            self.best_weights = [tensor.detach().clone() for tensor in self.ema.shadow_params]
        else:
            self.looks_since_best += 1
        return value

    def _report(self) -> None:
        if self.watch.report is not None and self.team.is_main:
            budget = self.watch.budget_s
            share = self.elapsed_s / budget if budget else self.step / self.settings.num_steps
            self.watch.report(Progress(self.task.name, self.step, 1.0 if self._is_done() else min(1.0, share), self.loss_average))

    def _is_done(self) -> bool:
        return self.step >= self.settings.num_steps or self._is_over()

    def _advance(self) -> float:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.mixed_precision and has_fast_bfloat16(self.device)):
            loss = self.task.loss(self.generator, self.settings.batch_size)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{self.task.name}: loss is {float(loss.detach())} at step {self.step}; lower the learning rate")
        loss.backward()
        self.team.reduce_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        if not torch.isfinite(norm):  # before it reaches the weights, and through them the checkpoint
            raise FloatingPointError(f"{self.task.name}: the gradient is {float(norm)} at step {self.step}; lower the learning rate")
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Writes the checkpoint; the main process does."""
        if not self.team.is_main:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.task.module.state_dict().items()}
        tensors |= {f"ema.{index}": tensor for index, tensor in enumerate(self.ema.shadow_params)}
        tensors |= {f"best.{index}": tensor for index, tensor in enumerate(self.best_weights)}
        tensors |= pack_optimizer(self.optimizer, "optimizer")
        tensors["random.generator"] = self.generator.get_state()
        tensors["random.global"] = torch.get_rng_state()
        if self.device.type == "cuda":  # the student's dropout draws there
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {"run_id": self.run_id, "step": self.step, "loss_average": self.loss_average, "ema_step": self.ema.optimization_step}
        state |= {"elapsed_s": self.elapsed_s, "best": [self.best_value, self.looks_since_best] if self.best_weights else None}
        save_checkpoint(self.path, tensors, state)

    def _resume(self) -> None:
        check_run(self.path, self.run_id)
        tensors, state = load_checkpoint(self.path)
        prefix = "model."
        self.task.module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        self.ema.shadow_params = [tensors[f"ema.{index}"].to(self.device) for index in range(len(self.parameters))]
        self.ema.optimization_step = state["ema_step"]
        unpack_optimizer(self.optimizer, tensors, "optimizer")
        self.step, self.loss_average, self.elapsed_s = state["step"], state["loss_average"], state["elapsed_s"]
        if state["best"] is not None:
            self.best_value, self.looks_since_best = state["best"]
            self.best_weights = [tensors[f"best.{index}"].to(self.device) for index in range(len(self.parameters))]
        self.lr_scheduler.last_epoch = self.step
        for group, base, ramp in zip(self.optimizer.param_groups, self.lr_scheduler.base_lrs, self.lr_scheduler.lr_lambdas, strict=True):
            group["lr"] = base * ramp(self.step)
        self.generator.set_state(tensors["random.generator"])
        torch.set_rng_state(tensors["random.global"])
        if self.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        logger.info("%s resumes at step %d", self.task.name, self.step)
