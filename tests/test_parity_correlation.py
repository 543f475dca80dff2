"""The published correlation code's numbers: similarities, filters, rotated baselines, summaries, tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from neuron_arrays import correlate_arrays
from torch import Tensor

from interpcore.neurons.correlation.correlate import Settings
from interpcore.neurons.correlation.partners import Partners
from interpcore.neurons.correlation.universal import universality

WIDTHS = [(128, 128), (128, 128)]
REDUCED = Path(__file__).parent / "data" / "parity_neurons.npz"
Get = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def peer(shared: Path) -> Get:
    path = shared / "parity" / "neurons" / "peer.npz"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the shared folder")
    data = np.load(path)
    return lambda key: torch.from_numpy(data[f"correlation/{key}"])


def both(peer: Get) -> list[Tensor]:
    """Activations [token, neuron] of the peer's two models."""
    return [peer(f"in/post_{side}").flatten(0, 1).t().contiguous() for side in "ab"]


def masks(peer: Get) -> dict[str, Tensor]:
    """Which tokens the peer's two loops keep."""
    tokens = peer("in/tokens").flatten()
    return {"ref": tokens != 0, "fast": (tokens != 0) & (tokens != 1)}


def whole(summary: Partners) -> Tensor:
    """The matrix [n, partner], which a summary holds where as many partners are kept as there are."""
    return torch.full_like(summary.top, torch.nan).scatter(1, summary.top_index, summary.top)


@pytest.mark.parametrize("similarity", ["pearson", "cosine", "jaccard"])
def test_similarities(similarity: str, peer: Get) -> None:
    name = {"pearson": "Pearson", "cosine": "CosineSim", "jaccard": "Jaccard"}[similarity]
    settings = Settings(similarity=similarity, rotation=None, top_k=256)
    got = whole(correlate_arrays(both(peer), WIDTHS, settings=settings).partners[0, 1])
    expected = peer(f"out/Streaming{name}Computer").view(256, 256).double()
    assert (got - expected).abs().max() < 2.5e-4


@pytest.mark.parametrize(("loop", "tolerance"), [("ref", 2.5e-4), ("fast", 6e-4)])
def test_filters(loop: str, tolerance: float, peer: Get) -> None:
    settings = Settings(rotation=None, top_k=256)
    found = correlate_arrays(both(peer), WIDTHS, masks(peer)[loop], settings)
    expected = peer(f"out/loop_{loop}_none").view(256, 256).double()
    assert (whole(found.partners[0, 1]) - expected).abs().max() < tolerance
    assert (whole(found.partners[1, 0]) - expected.t()).abs().max() < tolerance


def test_overflow(peer: Get) -> None:
    a, b = peer("in/overflow_a").flatten(0, 1).t().contiguous(), both(peer)[1]
    overflown = peer("out/overflow_sumsq").flatten().isinf()
    assert overflown.any()
    wrong = peer("out/overflow_corr").view(256, 256)[overflown]
    assert (wrong == 0).all()
    got = whole(correlate_arrays([a, b], WIDTHS, settings=Settings(rotation=None, top_k=256)).partners[0, 1])
    true = torch.corrcoef(torch.cat((a, b), 1).double().t())[:256, 256:]
    assert true[overflown].abs().amax(1).min() > 0.05
    assert (got - true).abs().max() < 2e-6


@pytest.mark.parametrize(("loop", "tolerance"), [("ref", 1.3e-4), ("fast", 5e-4)])
def test_rotation_by_the_covariance_identity(loop: str, tolerance: float, peer: Get) -> None:
    gaussian = peer("in/rotation_gaussian")
    unit = gaussian / gaussian.norm(dim=2, keepdim=True)
    settings = Settings(rotation=lambda model, depth, draw: unit[depth])
    found = correlate_arrays(both(peer), WIDTHS, masks(peer)[loop], settings)
    expected = peer(f"out/loop_{loop}_rotation").view(256, 256).double()
    summary = found.partners[0, 1]
    assert (summary.baseline[0] - expected.amax(1)).abs().max() < tolerance
    chosen = expected.gather(1, summary.baseline_index[0][:, None])[:, 0]
    assert (summary.baseline[0] - chosen).abs().max() < tolerance


def test_row_summary_is_the_peers_on_its_own_matrix(peer: Get) -> None:
    matrix = peer("out/loop_ref_none").view(256, 256).double()
    summary = Partners.empty(256, 50, 0)
    for row in (0, 128):
        for column in (0, 128):
            summary.add(matrix[row : row + 128, column : column + 128], row, column)

    def expected(name: str) -> Tensor:
        return peer(f"out/summary/{name}")

    assert torch.equal(summary.histogram, expected("bin_counts").long())
    assert torch.equal(summary.maximum, expected("max_corr").double())
    assert torch.equal(summary.minimum, expected("min_corr").double())
    assert torch.equal(summary.same, expected("diag_corr").double())
    assert torch.equal(summary.following[:255], expected("obo_corr").double())
    for ours, theirs in ((summary.top, "max_tail_corr"), (summary.bottom, "min_tail_corr")):
        assert torch.equal(ours, expected(theirs).double())
    for index, theirs in (
        (summary.top_index, "max_tail_corr_ix"),
        (summary.bottom_index, "min_tail_corr_ix"),
    ):
        at_ours, at_theirs = matrix.gather(1, index), matrix.gather(1, expected(theirs).long())
        assert torch.equal(at_ours, at_theirs)  # equal values stand in any order at the peer's
    for ours, theirs, tolerance in (
        (summary.mean, "corr_mean", 1e-5),
        (summary.variance, "corr_var", 1e-5),
        (summary.skewness, "corr_skew", 2e-3),
        (summary.kurtosis, "corr_kurt", 4e-3),
    ):
        assert (ours - expected(theirs).double()).abs().max() < tolerance


def test_table_and_reduction_over_partners(peer: Get) -> None:
    """The peer's two loops stand for two partner models, as in its own dump."""
    summaries = {}
    for number, loop in enumerate(("ref", "fast")):
        summary = Partners.empty(256, 1, 1)
        plain, turned = (peer(f"out/loop_{loop}_{kind}").view(256, 256) for kind in ("none", "rotation"))
        summary.add(plain.double(), 0, 0)
        summary.add_rotated(0, turned.float(), 0, 0)
        table = {
            name: peer(f"out/table/{number}/{name}")
            for name in ("max_corr", "max_sim_layer", "max_sim_neuron", "baseline", "baseline_layer")
        }
        neurons = correlate_arrays(both(peer)[:1] * 2, WIDTHS).sets[0]
        layer, neuron = neurons.address(summary.argmax)
        assert torch.equal(summary.maximum, table["max_corr"].double())
        at = table["max_sim_layer"] * 128 + table["max_sim_neuron"]
        assert torch.equal(plain.gather(1, at[:, None]), plain.gather(1, (layer * 128 + neuron)[:, None]))
        assert torch.equal(summary.baseline[0], table["baseline"].float())
        assert torch.equal(neurons.address(summary.baseline_index[0])[0], table["baseline_layer"])
        summaries[0, number + 1] = summary
    three = correlate_arrays([both(peer)[0]] * 3, [WIDTHS[0]] * 3, settings=Settings(draws=1))
    three.partners.update(summaries)
    columns = universality(three, 0, protocol="paper").columns
    for name in ("max_corr", "mean_corr", "min_corr", "max_baseline", "min_baseline", "mean_baseline"):
        assert (columns[name] - peer(f"out/reduced/{name}").double()).abs().max() < 1e-6, name


def test_stored_columns() -> None:
    """The same on the reduced file that travels with the repository."""
    data = {
        key: torch.from_numpy(value) for key, value in np.load(REDUCED).items() if "U" not in value.dtype.str
    }
    sides = [data[f"correlation/{side}"].t().contiguous() for side in "ab"]
    tokens = data["correlation/tokens"]
    keep = torch.ones(len(tokens), dtype=torch.bool)
    cases = [
        ("pearson", "pearson", keep, 2.5e-4),
        ("cosine", "cosine", keep, 2.5e-4),
        ("jaccard", "jaccard", keep, 2.5e-4),
        ("pearson_no_pad", "pearson", tokens != 0, 2.5e-4),
        ("pearson_no_pad_no_newline", "pearson", (tokens != 0) & (tokens != 1), 6e-4),
    ]
    for key, similarity, mask, tolerance in cases:
        settings = Settings(similarity=similarity, rotation=None)
        found = correlate_arrays(sides, [(4, 4), (8,)], mask, settings)
        assert (whole(found.partners[0, 1]) - data[f"correlation/{key}"].double()).abs().max() < tolerance, (
            key
        )
    sides[0][:, 0] = data["correlation/overflow_column"]
    got = whole(correlate_arrays(sides, [(4, 4), (8,)]).partners[0, 1])[0]
    assert (got - data["correlation/overflow_true"]).abs().max() < 1e-6
