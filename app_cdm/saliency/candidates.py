"""The free number of every mode that has one, its candidates, and the figure by which tags judge them.

Three candidates a mode and one criterion for all, so that no baseline is left untuned and none is tuned harder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app_cdm.config import SaliencyMode, SaliencySettings
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.combine import METHODS, smooth
from app_cdm.saliency.parallel import parallel_saliency


@dataclass(frozen=True)
class Candidates:
    """What may be chosen for a mode.

    Attributes:
        field: the field of `SaliencySettings`.
        values: its candidates.
    """

    field: str
    values: tuple[float, ...] | tuple[tuple[float, ...], ...]

    @property
    def names(self) -> list[str]:
        """The candidates as text, for a record."""
        return [", ".join(f"{item:g}" for item in (value if isinstance(value, tuple) else (value,))) for value in self.values]


# In this order: CG-CDM starts at the level of `reference`. `derivative` shares the levels of `parallel`, whose limit it
# is; GradCAM, LayerCAM and intensity have no free number.
CANDIDATES: dict[SaliencyMode, Candidates] = {
    "parallel": Candidates("noise_levels", ((0.35, 0.5, 0.65, 0.8), (0.35, 0.5, 0.65), (0.5, 0.65, 0.8))),
    "reference": Candidates("reference_noise_level", (0.32, 0.6, 0.8)),
    "cg_cdm": Candidates("cg_cdm_guidance_scale", (1.0, 10.0, 100.0)),
    "cg_diff": Candidates("cg_diff_noise_level", (0.32, 0.6, 0.8)),
    "forward_process": Candidates("forward_process_noise_levels", ((0.2, 0.35, 0.5, 0.65), (0.35, 0.5, 0.65, 0.8), (0.5, 0.65, 0.8, 0.9))),
    "gradient": Candidates("gradient_noise_level", (0.25, 0.46, 0.7)),
}


def candidate_peaks(model: SaliencyModel, inputs: SaliencyInputs, mode: SaliencyMode, settings: SaliencySettings) -> torch.Tensor:
    """Peak inside the body, in standard deviations of the map, for every candidate of a mode.

    Each map is divided by its standard deviation (`parallel`: each of its levels, as always), smoothed as for a mask,
    and its largest value in the body taken.

    Args:
        model: the networks.
        inputs: S slices and the class.
        mode: one of `CANDIDATES`.
        settings: everything but the candidates.

    Returns:
        `(K, S)` float32 for K candidates.
    """
    with torch.no_grad():
        maps = _parallel_maps(model, inputs, settings) if mode == "parallel" else _mode_maps(model, inputs, mode, settings)
    body = inputs.body
    return torch.stack([(smooth(found, settings.smoothing_px) * body).flatten(1).amax(dim=1) for found in maps])


def _mode_maps(model: SaliencyModel, inputs: SaliencyInputs, mode: SaliencyMode, settings: SaliencySettings) -> list[torch.Tensor]:
    candidates, maps = CANDIDATES[mode], []
    for value in candidates.values:
        found = METHODS[mode](model, inputs, settings.replace(mode=mode, **{candidates.field: value}))
        maps.append(found / found.flatten(1).std(dim=1).clamp_min(1e-12)[:, None, None])
    return maps


def _parallel_maps(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> list[torch.Tensor]:
    """Each level once, however many candidates hold it: the map of a candidate is the mean over its levels."""
    level_sets = [value for value in CANDIDATES["parallel"].values if isinstance(value, tuple)]
    levels = sorted({level for value in level_sets for level in value})
    by_level = {level: parallel_saliency(model, inputs, settings.replace(noise_levels=(level,))) for level in levels}
    return [torch.stack([by_level[level] for level in value]).mean(dim=0) for value in level_sets]
