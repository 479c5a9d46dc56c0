"""Strategies behind the viewers' Next Sample button."""
