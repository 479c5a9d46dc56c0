"""GradCAM of the classifier on clean slices, by MONAI."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from monai.visualize.class_activation_maps import GradCAM
from torch import nn

from app_cdm.config import SaliencySettings
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.cam import average_with_mirror, resize_to_slice


class CleanSliceClassifier(nn.Module):
    """A noise-conditional classifier whose slices are clean: timestep 0."""

    def __init__(self, classifier: NoiseConditionalClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    @property
    def last_stage(self) -> str:
        """Name of the last residual block, whose output is the last stage's."""
        config = self.classifier.config
        return f"classifier.down_blocks.{len(config.block_out_channels) - 1}.resnets.{config.layers_per_block - 1}"

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """`(B, C)` log-odds of `(B, 1, H, W)` slices."""
        return self.classifier(slices, torch.zeros(slices.shape[0], dtype=torch.long, device=slices.device))


def grad_cam_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """relu(sum_k mean(dy/dA_k) A_k) of the last stage, each map scaled to unit peak (Selvaraju et al. 2017).

    The slice and its mirror image are averaged.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: of which only `batch_images` is used.

    Returns:
        `(S, H, W)` float32 in [0, 1].
    """
    # MONAI leaves its hooks on the network, so they go to a copy.
    classifier = CleanSliceClassifier(copy.deepcopy(model.classifier).requires_grad_(False))
    cam = GradCAM(nn_module=classifier, target_layers=classifier.last_stage, upsampler=_upsampler, postprocessing=_unchanged)

    def compute(slices: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            # With frozen weights the gradient flows only if the slices ask for one.
            maps = cam(slices.detach().requires_grad_(True), class_idx=inputs.class_index)[:, 0].detach().float()
        return maps / maps.flatten(1).amax(dim=1).clamp_min(1e-12)[:, None, None]

    return average_with_mirror(inputs, model.device, settings.batch_images, compute)


def _upsampler(size: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """In place of MONAI's, which moves the map; see `resize_to_slice`."""
    return partial(resize_to_slice, size=size)


def _unchanged(maps: torch.Tensor) -> torch.Tensor:
    """In place of MONAI's scaling, which turns the map upside down."""
    return maps
