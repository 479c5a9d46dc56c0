"""CLDF: a pixel decoder trained by contrastive learning on the frozen diffusion model's features (Zeng et al. 2025)."""
