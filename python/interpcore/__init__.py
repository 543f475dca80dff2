"""interpcore: a compute core for interpretability experiments on transformer language models."""

__version__ = "0.1.0"
