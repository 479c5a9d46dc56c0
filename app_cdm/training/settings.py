"""What one training run is told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from app_cdm.cldf.settings import CLDFSettings
from app_cdm.config import PreprocessSettings, Settings, SettingsError, ranged
from app_cdm.data.augmentation import AugmentationSettings
from app_cdm.networks.presets import PRESETS, NetworkSettings
from app_cdm.student.settings import StudentSettings
from app_cdm.training.optimization import OptimizerSettings

WARM_UP_SHARE = 0.1  # of the steps of a stage, at most


@dataclass(frozen=True)
class TrainSettings(Settings):
    """One run, from image-level tags: a classifier, a conditional diffusion model, a pixel decoder on its features and a student.

    Attributes:
        preset: name of the network size, for the record.
        network: the network size.
        preprocess: how volumes become slices.
        augmentation: random geometry and contrast.
        classifier: optimisation of the classifier.
        diffusion: optimisation of the diffusion model.
        cldf: the pixel decoder.
        student: the student.
        label_dropout: probability that a class is replaced by the null class, which makes it the unconditional model.
        position_dropout: probability that the slice position is hidden.
        max_noise_level: highest sigma that is trained.
        focus_probability: share of the steps drawn from the noise levels that saliency uses.
        focus_noise_levels: lowest and highest sigma of that share.
        clean_probability: share of clean slices in the classifier's batches; the rest is noised, small t favoured.
        bag_weight: weight of the multiple-instance loss of volumes that hold a class somewhere.
        bag_sharpness: r of its pooling over slices; large values approach the maximum.
        seed: of everything random.
        num_threads: CPU threads; 0 leaves torch's own choice.
    """

    preset: str = "tiny"
    network: NetworkSettings = field(default_factory=lambda: PRESETS["tiny"])
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    classifier: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(num_steps=2500, learning_rate=5e-4))
    diffusion: OptimizerSettings = field(default_factory=OptimizerSettings)
    cldf: CLDFSettings = field(default_factory=CLDFSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    label_dropout: float = ranged(0.1, 0.0, 1.0)
    position_dropout: float = ranged(0.1, 0.0, 1.0)
    max_noise_level: float = ranged(0.95, 0.1, 0.999)
    focus_probability: float = ranged(0.7, 0.0, 1.0)
    focus_noise_levels: tuple[float, ...] = ranged((0.3, 0.87), 0.02, 0.999)
    clean_probability: float = ranged(0.5, 0.0, 1.0)
    bag_weight: float = ranged(0.5, 0.0, 10.0)
    bag_sharpness: float = ranged(4.0, 0.1, 100.0)
    seed: int = ranged(0, 0, 2**31 - 1)
    num_threads: int = ranged(0, 0, 1024)

    def num_rounds(self, stages: Collection[str]) -> dict[str, int]:
        """Rounds of the decoder and of the student; where both are trained the decoder has one more for each of the student's.

        Args:
            stages: what is trained.
        """
        together = self.student.num_rounds if "student" in stages else 0
        return {"cldf": self.cldf.num_rounds + together, "student": self.student.num_rounds}

    def for_epochs(self, epochs: float, num_slices: int, stages: Collection[str]) -> TrainSettings:
        """The same with numbers of steps for so many passes of every stage (of each of its rounds) over the slices.

        Where the diffusion model is trained, which needs by far the most, the other stages get no more than their steps here. The learning
        rate of the first stages rises over a tenth of their steps at most.

        Args:
            epochs: passes over the slices.
            num_slices: that are learned from.
            stages: what is trained.
        """

        def lasting(own: OptimizerSettings, limit: int | None) -> OptimizerSettings:
            steps = max(1, round(epochs * num_slices / own.batch_size))
            return own.replace(num_steps=steps if limit is None else min(steps, limit))

        changed = {}
        for stage in ("classifier", "diffusion"):
            own: OptimizerSettings = getattr(self, stage)
            own = lasting(own, own.num_steps if stage == "classifier" and "diffusion" in stages else None)
            changed[stage] = own.replace(num_warmup_steps=min(own.num_warmup_steps, int(WARM_UP_SHARE * own.num_steps)))
        later = {}
        for name, part in (("cldf", self.cldf), ("student", self.student)):
            later[name] = part.replace(optimizer=lasting(part.optimizer, part.optimizer.num_steps if "diffusion" in stages else None))
        return self.replace(**changed, **later)

    def check(self) -> None:
        if self.preprocess.image_size != self.network.image_size:
            raise SettingsError(
                f"TrainSettings.preprocess.image_size = {self.preprocess.image_size}: must be the network's, {self.network.image_size}"
            )
        if len(self.focus_noise_levels) != 2 or self.focus_noise_levels[0] > self.focus_noise_levels[1]:
            raise SettingsError(f"TrainSettings.focus_noise_levels = {self.focus_noise_levels}: must be a lowest and a highest level")
