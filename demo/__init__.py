"""The embedded demo: a synthetic FLAIR study made from the MNI152 template, and a run of the real label server on it."""
