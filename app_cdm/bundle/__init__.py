"""A model's student as a MONAI bundle: a folder that MONAI's own runner executes without this package."""
