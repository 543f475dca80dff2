"""Linear relational embeddings: how far a relation is an affine map of the subject's state.

LRE(h) = beta * W h + b, where W and b are means over a few examples of the Jacobian from the subject's state
to the last token's, and of its remainder (Hernandez et al. 2023, arXiv 2308.09124).
"""

from typing import Any

from interpcore._faces import names, shown

_FACE = {
    "edits": "Inverse edited_logits edited_tokens",
    "estimators": "corner_gradient corner_mean few_shot_one identity imaginary_subject low_rank one_example "
    "regression translation",
    "experiments": "EXPERIMENTS",
    "operator": "Operator estimate mean_operator predict",
    "options": "Options",
    "prompts": "Query encode_query relation_queries",
    "read": "attribute_grid",
    "report": "Comparison compare_runs published_table write_report",
    "states": "PromptStates read_states",
    "study": "Study open_study",
}
__all__ = names(_FACE)


def __getattr__(name: str) -> Any:
    return shown(__name__, _FACE, name)
