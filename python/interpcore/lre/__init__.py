"""Linear relational embeddings: how far a relation is an affine map of the subject's state.

LRE(h) = beta * W h + b, where W and b are means over a few examples of the Jacobian from the subject's state
to the last token's, and of its remainder (Hernandez et al. 2023, arXiv 2308.09124).
"""
