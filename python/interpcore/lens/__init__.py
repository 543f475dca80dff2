"""The Jacobian lens: what a state is worth, read through the average map from its depth to the last one.

J_d is the mean, over prompts and positions t, of the sum over later positions t' >= t of
d resid[target, t'] / d resid[d, t] (Gurnee et al. 2026). `fit` averages it with the standard error of every
entry, `read` decodes J_d h at every depth and position.
"""

from typing import Any

from interpcore._faces import names, shown

_FACE = {
    "compare": "compare_lenses",
    "edits": "directions steering swapping",
    "experiments": "EXPERIMENTS",
    "lens": "Lens Moments",
    "options": "FitOptions ReadOptions",
    "published": "load_lens read_published write_published",
    "read": "open_read read_states",
    "study": "open_fit",
    "sweep": "slice_moments",
}
__all__ = names(_FACE)


def __getattr__(name: str) -> Any:
    return shown(__name__, _FACE, name)
