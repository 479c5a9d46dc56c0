"""The forward process and its inverse."""
