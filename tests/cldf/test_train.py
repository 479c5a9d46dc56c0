"""Maps that are made block by block: what is kept, what is refused; and rounds of the decoder that are read instead of trained again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app_cdm.cldf.seeds import BACKGROUND, FOREGROUND, IGNORED, SeedSettings
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.cldf.train import DecoderTraining, Teacher, find_votes, in_blocks
from app_cdm.cldf.votes import SLICES_PER_CALL
from app_cdm.config import SaliencySettings
from app_cdm.data.tags import PRESENT
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.training.checkpoint import CheckpointError
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.stage import Stage
from app_cdm.training.teacher import decoder_probabilities, saliency_probabilities, teach
from app_cdm.training.team import Team
from tests.tagged_slices import FEATURES, tiny_decoder, two_volumes
from tests.tiny_networks import TINY, tiny_saliency_model
from tests.training.synthetic import blob_slices

SALIENCY = SaliencySettings(noise_levels=(0.4, 0.7), num_draws=1, flip=False)
LOOSE = SeedSettings(cam_foreground=0.2, gradient_foreground=0.2, saliency_foreground=0.9)
SHORT = OptimizerSettings(num_steps=2, batch_size=6, num_warmup_steps=1, mixed_precision=False)
BLOCKS = torch.arange(5).split(2)


def stage_in(folder: Path, run_id: str = "run") -> Stage:
    return Stage(folder, run_id, 0, torch.device("cpu"), progress=False)


class Maker:
    """Twice the rows; interrupted at the n-th block."""

    def __init__(self, interrupted_at: int = -1) -> None:
        self.made, self.interrupted_at = list[list[int]](), interrupted_at

    def __call__(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(self.made) == self.interrupted_at:
            raise KeyboardInterrupt
        self.made.append(rows.tolist())
        return {"twice": 2 * rows, "same": rows[:, None]}


@pytest.mark.parametrize("interrupted_at", [0, 1, 2])
def test_finished_blocks_are_not_made_again(tmp_path: Path, interrupted_at: int) -> None:
    first, second = Maker(interrupted_at), Maker()
    with pytest.raises(KeyboardInterrupt):
        in_blocks(stage_in(tmp_path), "maps_0", "maps", BLOCKS, first)
    # A process that is killed while it writes leaves a part under another name.
    (tmp_path / f".maps_0_{2 * interrupted_at:06d}.safetensors.1").write_bytes(b"a part")
    found = in_blocks(stage_in(tmp_path), "maps_0", "maps", BLOCKS, second)
    assert first.made + second.made == [[0, 1], [2, 3], [4]]
    assert torch.equal(found["twice"], 2 * torch.arange(5))
    assert torch.equal(found["same"], torch.arange(5)[:, None])
    in_blocks(stage_in(tmp_path), "maps_1", "other maps", BLOCKS, third := Maker())
    assert len(third.made) == 3, "files of another name are others"


def test_blocks_of_another_run_are_refused_before_any_is_made(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        in_blocks(stage_in(tmp_path), "maps", "maps", BLOCKS, Maker(2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="written with other settings or tags"):
        in_blocks(stage_in(tmp_path, "another run"), "maps", "maps", BLOCKS, other := Maker())
    assert other.made == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_processes_of_a_team_share_the_blocks(tmp_path: Path) -> None:
    second, main = Team(), Team()
    second.rank, second.size, main.size = 1, 2, 2
    made = [Maker(), Maker()]
    with pytest.raises(CheckpointError):  # nobody is waited for here, and the blocks of the other are missing
        in_blocks(stage_in(tmp_path), "maps", "maps", BLOCKS, made[1], second)
    found = in_blocks(stage_in(tmp_path), "maps", "maps", BLOCKS, made[0], main)
    assert [maker.made for maker in made] == [[[0, 1], [4]], [[2, 3]]]
    assert torch.equal(found["twice"], 2 * torch.arange(5))


@pytest.mark.parametrize("num_slices", [1, 2, 5, 20])
def test_what_is_taught_does_not_depend_on_the_blocks(tmp_path: Path, num_slices: int) -> None:
    """Each block is some whole volumes, for the target's appearance is that of a volume."""
    data, model, decoder = blob_slices(60), tiny_saliency_model(), tiny_decoder()
    data = type(data)(**{**vars(data), "volume_index": torch.arange(60) // num_slices})
    votes = find_votes(model, data, SALIENCY, stage_in(tmp_path / "votes"))
    found = Teacher(model, data, votes, SALIENCY, 1.0, stage_in(tmp_path / "teacher")).taught(0, 3, decoder, None)
    index = votes[0].index
    assert torch.equal(index, torch.nonzero(data.states[:, 0] == PRESENT)[:, 0])
    opinions = [saliency_probabilities(data, votes[0], SALIENCY, 1.0), decoder_probabilities(model, decoder, data, index, 0)]
    torch.testing.assert_close(found, teach(data, index, opinions), atol=1e-4, rtol=1e-3)
    volumes = data.volume_index[index].tolist()
    starts = sorted(int(path.stem.split("_")[-1]) for path in (tmp_path / "teacher").iterdir())
    assert {path.name[:12] for path in (tmp_path / "teacher").iterdir()} == {"teacher_3_0_"}
    assert all(start == 0 or volumes[start] != volumes[start - 1] for start in starts)
    sizes = [stop - start for start, stop in zip(starts, [*starts[1:], len(index)], strict=True)]
    assert max(sizes) < SLICES_PER_CALL + max(volumes.count(volume) for volume in volumes)
    assert 1 < len(sizes) <= len(index) / 10


def test_a_slice_on_which_the_teacher_sees_nothing_has_no_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tagged present, so it is no background either."""
    data, model = two_volumes(), tiny_saliency_model()
    votes = find_votes(model, data, SALIENCY, stage_in(tmp_path / "votes"))
    settings = CLDFSettings(FEATURES, LOOSE, hidden_channels=16, embedding_dim=4, num_background=2, optimizer=SHORT)
    training = DecoderTraining(model, data, votes, SALIENCY, settings, TINY, stage_in(tmp_path / "cldf"))
    training.learn()
    taught = torch.full((len(votes[0].index), 16, 16), 0.1)
    taught[1:, 4:8, 4:8] = 0.9
    monkeypatch.setattr(Teacher, "taught", lambda *_: taught)
    seeds = training._seeds(0, None)
    training.close()
    assert (seeds[0] == IGNORED).all()
    assert (seeds[1:, 4:8, 4:8] == FOREGROUND).all() and (seeds[1:, 9:] == BACKGROUND).all()


def test_finished_rounds_are_read_without_features_and_those_of_another_run_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model, votes_stage = two_volumes(), tiny_saliency_model(), stage_in(tmp_path / "votes")
    votes = find_votes(model, data, SALIENCY, votes_stage)
    settings = CLDFSettings(FEATURES, LOOSE, ignored_band=0.02, hidden_channels=16, embedding_dim=4, num_background=2, optimizer=SHORT)

    def training(run_id: str = "run") -> DecoderTraining:
        return DecoderTraining(model, data, votes, SALIENCY, settings, TINY, stage_in(tmp_path / "cldf", run_id))

    def weights(decoder: PixelDecoder) -> dict[str, torch.Tensor]:
        assert not decoder.training
        assert not any(parameter.requires_grad for parameter in decoder.parameters())
        return {name: tensor.clone() for name, tensor in decoder.state_dict().items()}

    first = training()
    rounds = [weights(first.learn()), weights(first.learn())]
    assert any(not torch.equal(rounds[0][name], tensor) for name, tensor in rounds[1].items())
    first.close()
    evaluated = model.counter.images
    second = training()
    for expected in rounds:
        found = weights(second.learn())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert model.counter.images == evaluated
    assert not list((tmp_path / "cldf").glob("features_*"))
    with pytest.raises(CheckpointError, match="written with other settings or tags"):
        training("another run").learn()
