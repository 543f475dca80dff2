"""Linear relational embeddings: how far a relation is an affine map of the subject's state.

LRE(h) = beta * W h + b, where W and b are means over a few examples of the Jacobian from the subject's state
to the last token's, and of its remainder (Hernandez et al. 2023, arXiv 2308.09124).
"""

from interpcore.lre.edits import Inverse, edited_logits, edited_tokens
from interpcore.lre.operator import Operator, estimate, predict
from interpcore.lre.prompts import Query, encode_query, relation_queries
from interpcore.lre.report import Comparison, Report, compare_runs, write_report
from interpcore.lre.states import PromptStates, read_states
from interpcore.lre.study import Options, run_study

__all__ = [
    "Comparison",
    "Inverse",
    "Operator",
    "Options",
    "PromptStates",
    "Query",
    "Report",
    "compare_runs",
    "edited_logits",
    "edited_tokens",
    "encode_query",
    "estimate",
    "predict",
    "read_states",
    "relation_queries",
    "run_study",
    "write_report",
]
