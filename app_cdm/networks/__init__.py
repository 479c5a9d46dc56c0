"""Networks on diffusers, and their sizes."""
