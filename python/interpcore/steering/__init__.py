"""Steering: directions in a model's states, interventions along them, and what they change.

`study` takes states of labelled questions and finds directions, `interventions` writes them as one affine
form at absolute positions, `sweep` runs depths by coefficients as rows of one batch, `accuracy` holds an
intervention against its controls, `effect` says where it moves the next token.
"""

from typing import Any

from interpcore._faces import names, shown

_FACE = {
    "accuracy": "open_accuracy",
    "choice": "generated option_scores",
    "directions": "Directions unit",
    "effect": "divergence published_effect second_order",
    "experiments": "EXPERIMENTS",
    "fits": "FITS fit",
    "interventions": "Intervention Part RECIPES Steer each_site everywhere",
    "moments": "Moments states",
    "prompts": "read_answer",
    "study": "open_states",
    "sweep": "sweep_scores",
}
__all__ = names(_FACE)


def __getattr__(name: str) -> Any:
    return shown(__name__, _FACE, name)
