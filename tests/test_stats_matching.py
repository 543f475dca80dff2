"""One-to-one matching against every permutation, and with candidates alone."""

import itertools

import numpy as np
import pytest

from interpcore.stats.matching import mutual, one_to_one


def total(similarity: np.ndarray, partner: np.ndarray) -> float:
    return float(sum(similarity[i, j] for i, j in enumerate(partner) if j >= 0))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4)])
def test_is_the_best_of_all(seed: int, shape: tuple[int, int]) -> None:
    n, m = shape
    similarity = np.random.default_rng(seed).uniform(0.1, 1, shape)
    got = one_to_one(np.tile(np.arange(m), (n, 1)), similarity, m)
    paired = got[got >= 0]
    assert len(set(paired)) == len(paired) == min(n, m)
    padded = np.pad(similarity, ((0, 0), (0, n)))
    best = max(total(padded, np.array(p)) for p in itertools.permutations(range(m + n if n > m else m), n))
    assert total(similarity, got) == pytest.approx(best)


def test_a_chain_gives_up_its_favourite() -> None:
    # 0 prefers partner 0 a little; 1 has no other: together they do best when 0 takes partner 1.
    got = one_to_one([[0, 1], [0, -1]], [[0.9, 0.8], [0.85, np.nan]], 2)
    assert got.tolist() == [1, 0]


def test_who_has_no_candidate_stays_alone() -> None:
    got = one_to_one([[0], [0], [-1], [1]], [[0.5], [0.6], [np.nan], [-0.3]], 2)
    assert got.tolist() == [-1, 0, -1, -1]
    assert one_to_one(np.full((3, 2), -1), np.full((3, 2), np.nan), 4).tolist() == [-1, -1, -1]
    with pytest.raises(ValueError, match="candidate 4 is not among 4"):
        one_to_one([[4]], [[1.0]], 4)


def test_mutual() -> None:
    assert mutual([1, 0, -1, 1], [1, 0]).tolist() == [True, True, False, False]
    assert mutual([1, 0, -1, 1], [1, 3]).tolist() == [False, True, False, True]
