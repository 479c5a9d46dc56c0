"""The training loop: an interrupted run ends bit-identical to an uninterrupted one, and bad checkpoints are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput

from app_cdm.data.dataset import BalancedSampler
from app_cdm.data.tags import PRESENT, UNKNOWN
from app_cdm.networks.presets import build_classifier, build_condition_embedding, build_scheduler, build_unet
from app_cdm.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from app_cdm.training.loop import Monitor, Progress, TrainingLoop, TrainingTask, Watch, has_fast_bfloat16
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.settings import TrainSettings
from app_cdm.training.tasks import ClassifierTask, ConditionalDenoiser, DiffusionTask
from tests.training.synthetic import NETWORK, blob_slices, tiny_settings

CPU = torch.device("cpu")


def classifier_task(settings: TrainSettings) -> ClassifierTask:
    torch.manual_seed(0)
    return ClassifierTask(build_classifier(NETWORK, 2), build_scheduler(), blob_slices(), settings)


def diffusion_task(settings: TrainSettings) -> DiffusionTask:
    torch.manual_seed(0)
    denoiser = ConditionalDenoiser(build_unet(NETWORK), build_condition_embedding(NETWORK, 2))
    return DiffusionTask(denoiser, build_scheduler(), blob_slices(), settings)


class LineTask(TrainingTask):
    """One weight pulled towards 1, and a loss or gradient that may break at a step."""

    name = "line"

    def __init__(self, break_at: int = -1, how: str = "") -> None:
        torch.manual_seed(0)
        self.module = torch.nn.Linear(1, 1)
        self.calls, self.break_at, self.how = 0, break_at, how

    def loss(self, generator: torch.Generator, batch_size: int) -> torch.Tensor:
        x = torch.randn(batch_size, 1, generator=generator)
        loss = (self.module(x) - x).square().mean()
        self.calls += 1
        if self.calls - 1 == self.break_at:
            if self.how == "interrupt":
                raise KeyboardInterrupt
            # The square root of zero has an infinite derivative but a finite value.
            loss = loss + (torch.nan if self.how == "loss" else (0.0 * self.module.weight.sum()).sqrt())
        return loss


class WatchedTask(LineTask):
    """The same, noting whether its loss is computed in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def loss(self, generator: torch.Generator, batch_size: int) -> torch.Tensor:
        self.dtypes.add(self.module(torch.zeros(1, 1)).dtype)
        return super().loss(generator, batch_size)


MAKERS: dict[str, Callable[[TrainSettings], TrainingTask]] = {"classifier": classifier_task, "diffusion": diffusion_task}


def run(task: TrainingTask, optimizer: OptimizerSettings, folder: Path, run_id: str = "run", seed: int = 3) -> TrainingLoop:
    loop = TrainingLoop(task, optimizer, folder, run_id, seed, CPU)
    loop.run(progress=False)
    return loop


def assert_same_end(first: TrainingLoop, second: TrainingLoop, folders: tuple[Path, Path]) -> None:
    for one, other in zip(first.parameters, second.parameters, strict=True):  # the average, which is what is published
        assert torch.equal(one, other)
    (tensors, state), (others, other_state) = (load_checkpoint(f / f"{first.task.name}.checkpoint.safetensors") for f in folders)
    for timed in (state, other_state):
        assert timed.pop("elapsed_s") >= 0
    assert state == other_state
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize(("name", "mixed_precision"), [("classifier", False), ("classifier", True), ("diffusion", True)])
def test_resumed_run_is_bit_identical(tmp_path: Path, name: str, mixed_precision: bool) -> None:
    settings = tiny_settings(9)
    optimizer = settings.classifier.replace(mixed_precision=mixed_precision)
    whole = run(MAKERS[name](settings), optimizer, tmp_path / "whole")
    run(MAKERS[name](settings), optimizer.replace(num_steps=4), tmp_path / "parts")
    torch.manual_seed(12345)  # a new process has another global state
    resumed = run(MAKERS[name](settings), optimizer, tmp_path / "parts")
    assert resumed.step == whole.step == 9
    assert_same_end(whole, resumed, (tmp_path / "whole", tmp_path / "parts"))


def test_run_interrupted_anywhere_is_bit_identical(tmp_path: Path) -> None:
    optimizer = OptimizerSettings(num_steps=12, batch_size=4, num_warmup_steps=4, checkpoint_every_s=0.0, ema_decay=0.9)
    whole = run(LineTask(), optimizer, tmp_path / "whole")
    for stop in (3, 4):  # within the warm-up, and right after; counted from the last resumption
        with pytest.raises(KeyboardInterrupt):
            run(LineTask(stop, "interrupt"), optimizer, tmp_path / "parts")
    resumed = run(LineTask(), optimizer, tmp_path / "parts")
    assert resumed.task.calls == 12 - 7  # type: ignore[attr-defined]
    assert_same_end(whole, resumed, (tmp_path / "whole", tmp_path / "parts"))


def test_finished_run_trains_no_further_and_gives_the_same_average(tmp_path: Path) -> None:
    optimizer = tiny_settings(4).classifier
    first = run(classifier_task(tiny_settings()), optimizer, tmp_path)
    again = run(classifier_task(tiny_settings()), optimizer, tmp_path)
    assert again.step == 4
    for one, other in zip(first.parameters, again.parameters, strict=True):
        assert torch.equal(one, other)


def test_average_follows_its_recurrence_and_learning_rate_its_warm_up(tmp_path: Path) -> None:
    optimizer = OptimizerSettings(num_steps=9, batch_size=4, num_warmup_steps=4, learning_rate=0.1, ema_decay=0.9)
    loop = TrainingLoop(LineTask(), optimizer, tmp_path, "run", 0, CPU)
    average, rates = [p.detach().clone() for p in loop.parameters], []
    for step in range(9):
        rates.append(loop.optimizer.param_groups[0]["lr"])
        loop._advance()
        decay = min(1 - (1 + step) ** -0.75, 0.9) if step else 0.0  # diffusers' warm-up with power 3/4
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, loop.parameters, strict=True)]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])
    for expected, found in zip(average, loop.ema.shadow_params, strict=True):
        torch.testing.assert_close(found, expected)


def test_checkpoint_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(LineTask(), OptimizerSettings(num_steps=3, batch_size=4), tmp_path, "first")
    before = (tmp_path / "line.checkpoint.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="other settings or tags: choose another run folder, or delete it"):
        TrainingLoop(LineTask(), OptimizerSettings(num_steps=3, batch_size=4), tmp_path, "second", 0, CPU)
    assert (tmp_path / "line.checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "no state"])
def test_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    run(LineTask(), OptimizerSettings(num_steps=3, batch_size=4), tmp_path)
    path = tmp_path / "line.checkpoint.safetensors"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-20], "garbage": b"x" * 300, "empty": b"", "no state": b""}[damage])
    if damage == "no state":
        from_elsewhere = {"weight": torch.zeros(2)}
        save_checkpoint(path, from_elsewhere, {})
        with pytest.raises(CheckpointError, match="other settings or tags"):
            run(LineTask(), OptimizerSettings(num_steps=3, batch_size=4), tmp_path)
        return
    with pytest.raises(CheckpointError, match=r"line\.checkpoint\.safetensors cannot be read .*: delete it to start over"):
        run(LineTask(), OptimizerSettings(num_steps=3, batch_size=4), tmp_path)


def test_checkpoint_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    save_checkpoint(path, {"a": torch.arange(3.0)}, {"step": 1})
    with pytest.raises(TypeError):
        save_checkpoint(path, {"a": torch.zeros(3)}, {"step": object()})  # cannot be written
    tensors, state = load_checkpoint(path)
    assert torch.equal(tensors["a"], torch.arange(3.0))
    assert state == {"step": 1}
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_non_finite_loss_or_gradient_stops_before_it_reaches_the_weights(tmp_path: Path, how: str) -> None:
    task = LineTask(5, how)
    optimizer = OptimizerSettings(num_steps=9, batch_size=4, checkpoint_every_s=0.0, num_warmup_steps=0)
    with pytest.raises(FloatingPointError, match=rf"line: .*{how} is (nan|inf) at step 5; lower the learning rate"):
        run(task, optimizer, tmp_path)
    assert all(parameter.isfinite().all() for parameter in task.module.parameters())
    tensors, state = load_checkpoint(tmp_path / "line.checkpoint.safetensors")
    assert state["step"] == 5
    assert all(tensor.isfinite().all() for name, tensor in tensors.items() if name.startswith(("model.", "ema.", "optimizer.")))


def test_budget_ends_training_and_counts_over_resumptions(tmp_path: Path) -> None:
    optimizer = OptimizerSettings(num_steps=100_000, batch_size=4, checkpoint_every_s=0.0)
    first = TrainingLoop(LineTask(), optimizer, tmp_path, "run", 0, CPU, Watch(budget_s=0.2))
    first.run(progress=False)
    assert 0 < first.step < 100_000
    assert first.elapsed_s >= 0.2
    spent = TrainingLoop(LineTask(), optimizer, tmp_path, "run", 0, CPU, Watch(budget_s=0.2))
    spent.run(progress=False)
    assert spent.step == first.step
    longer = TrainingLoop(LineTask(), optimizer, tmp_path, "run", 0, CPU, Watch(budget_s=first.elapsed_s + 0.2))
    longer.run(progress=False)
    assert longer.step > first.step


@pytest.mark.parametrize("interrupted_at", [None, 17])
def test_monitor_keeps_the_best_weights_and_stops_when_nothing_gets_better(tmp_path: Path, interrupted_at: int | None) -> None:
    """The criterion falls from the third look on: the weights of the third are what remains, also over a resumption."""
    optimizer = OptimizerSettings(
        num_steps=1000, batch_size=4, num_warmup_steps=0, learning_rate=0.01, ema_decay=0.5, checkpoint_every_s=0.0
    )
    seen: list[list[torch.Tensor]] = []
    values = iter([0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7])

    def criterion(module: torch.nn.Module) -> float:
        seen.append([parameter.detach().clone() for parameter in module.parameters()])
        assert not module.training
        return next(values)

    watch = Watch(monitor=Monitor(criterion, every_steps=5, patience=3))
    if interrupted_at is not None:
        with pytest.raises(KeyboardInterrupt):
            TrainingLoop(LineTask(interrupted_at, "interrupt"), optimizer, tmp_path, "run", 0, CPU, watch).run(progress=False)
    loop = TrainingLoop(LineTask(), optimizer, tmp_path, "run", 0, CPU, watch)
    loop.run(progress=False)
    assert loop.step == 5 * 6, "three looks after the best one"
    assert loop.best_value == 0.9
    for parameter, best in zip(loop.parameters, seen[2], strict=True):
        assert torch.equal(parameter, best)


def test_report_says_where_training_is(tmp_path: Path) -> None:
    told: list[Progress] = []
    optimizer = OptimizerSettings(num_steps=50, batch_size=4)
    TrainingLoop(LineTask(), optimizer, tmp_path, "run", 0, CPU, Watch(report=told.append)).run(progress=False)
    assert [(where.name, where.step, where.share) for where in told] == [("line", 25, 0.5), ("line", 50, 1.0), ("line", 50, 1.0)]
    assert all(math.isfinite(where.loss) for where in told)


def test_loss_falls_and_is_logged(tmp_path: Path) -> None:
    settings = tiny_settings(40, clean_probability=1.0)
    task = classifier_task(settings)
    generator = torch.Generator().manual_seed(0)
    before = float(task.loss(generator, 32).detach())
    run(task, settings.classifier, tmp_path)
    assert float(task.loss(generator, 32).detach()) < before - 0.1
    assert list((tmp_path / "tensorboard" / "classifier").glob("events.out.tfevents.*"))


def test_classifier_loss_is_the_mean_cross_entropy_of_known_tags() -> None:
    task = classifier_task(tiny_settings())
    task.module.eval()
    logits: list[torch.Tensor] = []
    hook = task.module.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
    loss = task.loss(torch.Generator().manual_seed(0), 16)
    hook.remove()
    drawn = BalancedSampler(task.data, torch.Generator().manual_seed(0)).draw(16)  # the first thing a step draws
    states = task.data.states[drawn]
    assert (states == UNKNOWN).any()
    terms = [
        -torch.nn.functional.logsigmoid(logit if state == PRESENT else -logit)
        for row, known in zip(logits[0], states, strict=True)
        for logit, state in zip(row, known.tolist(), strict=True)
        if state != UNKNOWN
    ]
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_convolution_copies_its_input_to_another_layout(name: str) -> None:
    task = MAKERS[name](tiny_settings())
    task.module.train()
    seen: list[bool] = []

    def look(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in task.module.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(look)
    task.loss(torch.Generator().manual_seed(1), 4)
    assert len(seen) > 5
    assert all(seen)


def test_classifier_has_dropout_in_training_alone() -> None:
    task = classifier_task(tiny_settings())
    slices, clean = torch.randn(4, 1, 16, 16), torch.zeros(4, dtype=torch.long)
    for mode in (True, False):
        task.module.train(mode)
        assert torch.equal(task.module(slices, clean), task.module(slices, clean)) is not mode


def test_losses_draw_from_their_generator_alone() -> None:
    for task in (classifier_task(tiny_settings()), diffusion_task(tiny_settings())):
        first = task.loss(torch.Generator().manual_seed(1), 8)
        torch.manual_seed(77)
        assert torch.equal(task.loss(torch.Generator().manual_seed(1), 8), first)
        assert not torch.equal(task.loss(torch.Generator().manual_seed(2), 8), first)


def test_network_that_answers_v_has_no_diffusion_loss() -> None:
    task = diffusion_task(tiny_settings())
    task.data.slices.fill_(-1.0)  # so that x_t tells its noise

    def perfect(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: UNet2DOutput) -> UNet2DOutput:
        bar = task.scheduler.alphas_cumprod[inputs[1]].view(-1, 1, 1, 1)
        noise = (inputs[0] + bar.sqrt()) / (1 - bar).sqrt()
        return UNet2DOutput(sample=bar.sqrt() * noise + (1 - bar).sqrt() + 0.0 * output.sample)

    hook = task.module.unet.register_forward_hook(perfect)
    assert float(task.loss(torch.Generator().manual_seed(0), 16).detach()) < 1e-4
    hook.remove()


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_label_and_position_dropout_make_the_unconditional_model(dropout: float) -> None:
    task = diffusion_task(tiny_settings(label_dropout=dropout, position_dropout=dropout))
    task.loss(torch.Generator().manual_seed(0), 16).backward()
    condition = task.module.condition_embedding
    by_kind = condition.class_vectors.grad.abs().sum(dim=2)  # (class, absent | present | null)
    assert (by_kind[0] > 0).tolist() == ([False, False, True] if dropout else [True, True, False])  # class 0 is always known
    assert bool(by_kind[1, 2] > 0)  # class 1 is unknown now and then
    assert bool(condition.unknown_position.grad.abs().sum() > 0) == bool(dropout)


def test_noise_levels_of_diffusion_training() -> None:
    task = diffusion_task(tiny_settings())
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    scheduler = task.scheduler

    def note(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        asked.append((inputs[0], inputs[1]))

    hook = task.module.unet.register_forward_hook(note)
    loss = task.loss(torch.Generator().manual_seed(0), 64)
    hook.remove()
    samples, timesteps = asked[0]
    # An untrained network of small output leaves about the variance of v = alpha eps - sigma x0, which is below one.
    assert 0.3 < float(loss.detach()) < 3.0
    assert samples.shape == (64, 4, 8, 8)
    assert timesteps.max() <= task.max_timestep
    levels = (1 - scheduler.alphas_cumprod[timesteps]).sqrt()
    assert ((levels > 0.29) & (levels < 0.88)).float().mean() > 0.6  # the focus
    assert levels.max() < 0.96


def test_mixed_precision_is_ignored_where_hardware_lacks_it(tmp_path: Path) -> None:
    is_fast = has_fast_bfloat16(CPU)
    assert isinstance(is_fast, bool)
    assert isinstance(has_fast_bfloat16(torch.device("cuda")), bool)
    optimizer = OptimizerSettings(num_steps=3, batch_size=4)
    for mixed_precision in (False, True):
        task = WatchedTask()
        run(task, optimizer.replace(mixed_precision=mixed_precision), tmp_path / str(mixed_precision))
        assert task.dtypes == {torch.bfloat16 if mixed_precision and is_fast else torch.float32}
