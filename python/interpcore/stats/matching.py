"""One-to-one matching of two sets by similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def one_to_one(candidates: ArrayLike, similarity: ArrayLike, n_partners: int) -> NDArray[np.int64]:
    """Pairs every element with at most one partner and every partner with at most one element, so that the
    sum of similarities is the largest (the assignment problem, Kuhn 1955, sparse as in Jonker and Volgenant
    1987).

    Only candidates can be paired, and only where the similarity is positive. With all partners as candidates
    the result is the best there is.

    Args:
        candidates: partners of each element [n, k], such as its k most similar; negative for none.
        similarity: with each of them [n, k]; NaN for none.
        n_partners: number of partners.

    Returns:
        The partner of each element [n], -1 for none.

    Raises:
        ValueError: shapes differ, or a candidate is not below `n_partners`.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    number, value = np.asarray(candidates, dtype=np.int64), np.asarray(similarity, dtype=np.float64)
    if number.ndim != 2 or number.shape != value.shape:
        raise ValueError(f"Candidates {number.shape} and similarities {value.shape} must be [n, k] both.")
    if number.size and number.max() >= n_partners:
        raise ValueError(f"The candidate {number.max()} is not among {n_partners} partners.")
    n = len(number)
    usable = (number >= 0) & (value > 0)
    row, _ = np.nonzero(usable)
    # A place for every element to stay alone makes the matching full; all weights are moved by one constant,
    # which changes no full matching's rank, since zeros are no edges.
    rows = np.concatenate((row, np.arange(n)))
    columns = np.concatenate((number[usable], n_partners + np.arange(n)))
    largest = float(value[usable].max(initial=0.0))
    weights = largest + 1.0 - np.concatenate((value[usable], np.zeros(n)))
    graph = csr_matrix((weights, (rows, columns)), shape=(n, n_partners + n))
    _, matched = min_weight_full_bipartite_matching(graph)
    return np.where(matched < n_partners, matched, -1).astype(np.int64)


def mutual(best: ArrayLike, best_back: ArrayLike) -> NDArray[np.bool_]:
    """Which elements are the most similar one of their most similar partner.

    Args:
        best: most similar partner of each element [n], negative for none.
        best_back: most similar element of each partner [m], negative for none.

    Returns:
        [n].
    """
    there, back = np.asarray(best, dtype=np.int64), np.asarray(best_back, dtype=np.int64)
    return (there >= 0) & (back[there.clip(min=0)] == np.arange(len(there)))
