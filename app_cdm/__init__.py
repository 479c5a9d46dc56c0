"""Weakly supervised segmentation of medical images with a conditional diffusion model.

The names are those of `__init__.pyi`, each imported when it is first asked for: torch and diffusers take seconds.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
