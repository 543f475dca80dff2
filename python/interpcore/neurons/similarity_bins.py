"""The published histogram of similarities."""

import torch

EDGES = torch.linspace(-1, 1, 100)
"""Inner edges of its 101 bins; bin = number of edges below the value."""
