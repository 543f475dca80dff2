"""Folded weights: the folding changes no prediction, statistics equal their definitions and the peer's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import transformers_model
from test_parity_data import load as load_reduced

import interpcore
from interpcore.neurons.weights import composition as comp
from interpcore.neurons.weights import cosines
from interpcore.neurons.weights.fold import (
    FoldedWeights,
    NeuronWeights,
    fold,
    frequency_alignment,
    from_arrays,
    neuron_columns,
    null_space_fraction,
)
from interpcore.neurons.weights.fold import cosine as row_cosine

FAMILIES = ("gpt2", "gptj", "gpt_neox", "gpt_neox-serial", "llama", "qwen2", "gpt_neo")


def load(family, dtype=torch.float64):
    return interpcore.load(transformers_model(family, dtype=dtype), check=False)


@pytest.fixture(scope="module")
def gpt2():
    return load("gpt2")


@pytest.fixture(scope="module")
def peer(shared):
    with np.load(shared / "parity" / "neurons" / "peer.npz") as file:
        return {name: file[name] for name in file.files if name.startswith("weights/")}


def with_folded_weights(model):
    """The model rebuilt from its folded weights: norms without weight or bias."""
    folded = fold(model, torch.float64)

    def bare(norm):
        return replace(norm, weight=None, bias=None, offset=0.0)

    modules = {}
    for depth in range(folded.n_layers):
        block, w = model.block(depth), folded.neurons(depth)
        first = replace(block.mlp.gate or block.mlp.up, weight=w.read.mT, bias=w.bias)
        up = first if w.up is None else replace(block.mlp.up, weight=w.up.mT, bias=w.up_bias)
        mlp = replace(block.mlp, up=up, gate=None if w.up is None else first)
        mlp = replace(mlp, down=replace(block.mlp.down, weight=w.write))
        modules[f"block.{depth}"] = replace(block, mlp=mlp, mlp_norm=bare(block.mlp_norm))
    final = model.final_norm
    bias = model.unembedding.bias
    if final.bias is not None:
        folded_bias = final.bias @ model.unembedding.weight
        bias = folded_bias if bias is None else bias + folded_bias
    unembedding = replace(model.unembedding, weight=folded.unembedding, bias=bias)
    return replace(model, modules=modules, final_norm=bare(final), unembedding=unembedding)


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_changes_no_prediction(family):
    model = load(family)
    tokens = torch.randint(0, model.spec.vocab_size, (2, 7), generator=torch.Generator().manual_seed(0))
    before, after = (m(tokens).logits.log_softmax(-1) for m in (model, with_folded_weights(model)))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_layer_norm_models_write_and_read_nothing_along_the_mean(gpt2):
    folded = fold(gpt2, torch.float64)
    w, h = folded.neurons(1), folded.heads(1)
    for rows in (w.read, w.write, folded.embedding, folded.unembedding.mT, h.output, h.query.mT):
        assert rows.mean(-1).abs().max() < 1e-15
    assert folded.unembedding.mean(1).abs().max() < 1e-15
    assert not fold(load("llama")).centred


def test_a_norm_after_the_branch_scales_what_is_written():
    model = load("gemma2")
    block = model.block(0)
    expected = block.mlp.down.weight * (1 + block.mlp_post_norm.weight)
    torch.testing.assert_close(fold(model, torch.float64).neurons(0).write, expected)
    # Soft-capped logits are not free up to a constant.
    assert fold(model).unembedding.mean(1).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_heads_are_those_that_the_forward_runs(family):
    model = load(family)
    x = torch.randn(5, model.spec.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    block, heads = model.block(2), fold(model, torch.float64).heads(2)
    q, k, v = block.attention.qkv(block.attn_norm(x))
    zero = torch.zeros_like(x)  # a layer norm sends it to its bias, an RMS norm to zero
    q0, k0, v0 = block.attention.qkv(block.attn_norm(zero))
    normed = block.attn_norm.normalise(x)[0]
    repeat = model.spec.n_heads // model.spec.n_kv_heads
    for got, weight, times in (
        (q - q0, heads.query, 1),
        (k - k0, heads.key, repeat),
        (v - v0, heads.value, repeat),
    ):
        expected = torch.einsum("pd,hde->phe", normed, weight)
        torch.testing.assert_close(got.repeat_interleave(times, 1), expected, rtol=1e-9, atol=1e-9)


def test_gated_neurons_have_the_factor_beside_the_gate():
    model = load("llama")
    w = fold(model, torch.float64).neurons(0)
    columns = neuron_columns(w)
    every = torch.cat((w.read, w.up, w.write), 1)
    torch.testing.assert_close(columns["l2_penalty"], every.square().sum(1))
    torch.testing.assert_close(columns["gate_up_sim"], torch.cosine_similarity(w.read, w.up))


def test_columns_are_the_peers(peer):
    folded = peer_weights(peer)
    for depth in range(2):
        columns = neuron_columns(folded.neurons(depth))
        rows = slice(128 * depth, 128 * depth + 128)
        names = {"w_in_norm": "input_weight_norm", "input_bias": "input_bias"}
        names |= {"w_out_norm": "output_weight_norm", "in_out_sim": "in_out_sim"}
        for ours, theirs in names.items():
            np.testing.assert_allclose(columns[ours], peer[f"weights/out/{theirs}"][rows], rtol=0, atol=3e-7)
        moments = cosines.vocabulary_moments(folded, depth)
        for ours, theirs, atol in (
            ("mean", "mean", 3e-7),
            ("variance", "var", 3e-7),
            ("skewness", "skew", 4e-7),
            ("kurtosis", "kurt", 2e-6),
        ):
            expected = peer[f"weights/out/vocab_{theirs}"][rows]
            np.testing.assert_allclose(getattr(moments, ours), expected, rtol=0, atol=atol)


def test_cosine_summaries_are_the_peers(peer):
    """The published tables: own cosine set to zero, 20 neurons and up to 100 tokens on either side."""
    folded = peer_weights(peer)
    for depth in range(2):
        for kind in cosines.NEURON_KINDS:
            found = cosines.neuron_cosines(folded, depth, kind, diagonal="zero")
            whole = peer[f"weights/out/neuron_comp/{depth}/{kind}"].reshape(128, 256)
            check_summary(found, whole, peer, f"weights/out/neuron_comps/{kind}", depth, "neuron", 20)
        for kind in cosines.VOCABULARY_KINDS:
            found = cosines.vocabulary_cosines(folded, depth, kind)
            whole = peer[f"weights/out/vocab_comp/{depth}/{kind}"]
            check_summary(found, whole, peer, f"weights/out/vocab_comps/{kind}", depth, "vocab", 97)


def check_summary(found, whole, peer, prefix, depth, what, k):
    assert found.top.shape[1] == k
    for ours, theirs, atol in (
        ("mean", "mean", 2e-7),
        ("variance", "var", 2e-7),
        ("skewness", "skew", 2e-6),
        ("kurtosis", "kurt", 1e-5),
    ):
        expected = peer[f"{prefix}/comp_{theirs}"][depth]
        np.testing.assert_allclose(getattr(found.moments, ours), expected, rtol=0, atol=atol)
    # A cosine within rounding of a bin's edge may fall on its other side.
    assert np.abs(found.histogram.numpy() - peer[f"{prefix}/comp_hist"][depth]).sum() <= 8
    for end, theirs in ((found.top, "top"), (found.bottom, "bottom")):
        values = peer[f"{prefix}/{theirs}_{what}_value"][depth][:, :k]
        np.testing.assert_allclose(end, values, rtol=0, atol=2e-7)
    for index, end in ((found.top_index, found.top), (found.bottom_index, found.bottom)):
        np.testing.assert_allclose(np.take_along_axis(whole, index.numpy(), 1), end, rtol=0, atol=2e-7)


def test_attention_composition_is_the_peers_with_its_files_renamed(peer):
    """The peer's k file holds the query side and its q file the key side."""
    folded = peer_weights(peer)
    for depth in range(2):
        theirs = {k: peer[f"weights/out/attn_comp/{depth}/{k}"] for k in "qkvo"}
        for other in range(2):
            found = comp.composition(folded.neurons(depth), folded.heads(other))
            for ours, name in (("q", "k"), ("k", "q"), ("v", "v"), ("o", "o")):
                np.testing.assert_allclose(found[ours], theirs[name][:, other], rtol=0, atol=2e-7)
    assert np.abs(theirs["q"] - theirs["k"]).max() > 0.05


def peer_weights(peer) -> FoldedWeights:
    prefix = "weights/in/a/"
    taken = {name.removeprefix(prefix): a for name, a in peer.items() if name.startswith(prefix)}
    return from_arrays({name: a.astype(np.float64) for name, a in taken.items()})


def test_reduced_parity_numbers():
    """The same comparison on the stored part, which needs nothing beside the repository."""
    stored = {
        n.removeprefix("weights/"): torch.from_numpy(a) for n, a in load_reduced("parity_neurons.npz").items()
    }
    weights = NeuronWeights(stored["W_in"].mT, stored["b_in"], stored["W_out"])
    folded = FoldedWeights(1, stored["W_U"].mT, stored["W_U"], lambda depth: weights, lambda depth: None)
    columns = neuron_columns(weights)
    for name in ("w_in_norm", "input_bias", "w_out_norm", "in_out_sim"):
        np.testing.assert_allclose(columns[name], stored[name], rtol=0, atol=3e-7)
    moments = cosines.vocabulary_moments(folded, 0, tile=26 * 11)
    for ours, theirs, atol in (
        ("mean", "mean", 3e-7),
        ("variance", "var", 3e-7),
        ("skewness", "skew", 4e-7),
        ("kurtosis", "kurt", 2e-6),
    ):
        np.testing.assert_allclose(getattr(moments, ours), stored[f"vocab_{theirs}"], rtol=0, atol=atol)
    for kind in ("in_in", "in_out", "out_out"):
        found = cosines.neuron_cosines(folded, 0, kind, k=26, diagonal="zero")
        np.testing.assert_allclose(found.top, stored[kind].sort(1, descending=True).values, rtol=0, atol=3e-7)


@pytest.mark.parametrize("tile", [1, 37, 1 << 20])
def test_a_summary_does_not_depend_on_its_tiles(tile):
    rows, columns = (
        cosines.unit_rows(torch.randn(n, 6, generator=torch.Generator().manual_seed(n))) for n in (5, 23)
    )
    found = cosines.summarize_cosines(rows, columns.split(9), k=4, own=7, tile=tile)
    whole = (rows @ columns.mT).double()
    whole[torch.arange(5), torch.arange(5) + 7] = torch.nan
    kept = whole[~whole.isnan()].view(5, 22)
    torch.testing.assert_close(found.moments.mean, kept.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found.top.double(), kept.sort(1, descending=True).values[:, :4], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(found.bottom.double(), kept.sort(1).values[:, :4], rtol=0, atol=1e-6)
    assert torch.equal(found.histogram.sum(1), torch.full((5,), 22))
    assert not (found.top_index == torch.arange(5)[:, None] + 7).any()


def test_a_dead_neuron_has_no_cosine_and_spoils_no_other(gpt2):
    folded = fold(gpt2)
    write = folded.neurons(0).write.clone()
    write[3] = 0
    dead = replace(
        folded, neurons=lambda d: replace(folded.neurons(d), write=write) if d == 0 else folded.neurons(d)
    )
    assert neuron_columns(dead.neurons(0))["in_out_sim"].isnan().nonzero().tolist() == [[3]]
    moments = cosines.vocabulary_moments(dead, 0)
    assert moments.count[3] == 0
    assert moments.kurtosis.isnan().nonzero().tolist() == [[3]]
    nearest = cosines.nearest_neurons(dead, 1)
    assert all(bool(column.isfinite().all()) for column in nearest.values())


def test_composition_sees_a_planted_path(gpt2):
    """A neuron that writes what one head's query reads composes with that head's query side alone."""
    folded = fold(gpt2, torch.float64)
    heads = folded.heads(2)
    strongest = torch.linalg.svd(heads.query[1] @ heads.key[1].mT)
    planted = NeuronWeights(strongest.U[:, :1].mT, torch.zeros(1), strongest.U[:, :1].mT)
    found = comp.composition(planted, heads)
    expected = strongest.S[0] / strongest.S.square().sum().sqrt()
    torch.testing.assert_close(found["q"][0, 1], expected)
    assert found["q"][0].argmax() == 1
    assert found["k"][0, 1] < found["q"][0, 1]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_composition_summaries_keep_to_what_a_forward_can_do(family):
    folded = fold(load(family))
    first, last = comp.composition_summary(folded, 0), comp.composition_summary(folded, 3)
    for kind in "qkv":
        assert last.largest[kind].isnan().all()
        assert int(first.layer[kind].min()) >= 1
    # Parallel blocks: the MLP of block 0 reads no head.
    assert bool((first.layer["o"] == (0 if family == "gpt2" else -1)).all())
    values = comp.composition(folded.neurons(0), folded.heads(int(first.layer["v"][5])))["v"]
    torch.testing.assert_close(values[5, first.head["v"][5]], first.largest["v"][5])


def test_the_null_space_is_where_the_unembedding_is_small(gpt2):
    folded = fold(gpt2, torch.float64)
    rho = null_space_fraction(folded, k=3)
    u, s, _ = torch.linalg.svd(folded.unembedding, full_matrices=False)
    assert s[-1] < 1e-12 < s[-2]  # the mean over d_model: no null direction of ours
    torch.testing.assert_close(rho(u.mT[-4:-1]), torch.ones(3, dtype=torch.float64))
    assert rho(u.mT[:-4]).max() < 1e-7
    torch.testing.assert_close(rho(7 * (u.mT[-2:-1] + u.mT[:1])), torch.tensor([0.5**0.5]).double())
    with pytest.raises(ValueError, match="1 to 31 directions"):
        null_space_fraction(folded, k=32)


def test_a_neuron_that_writes_along_the_unigram_direction_is_aligned(gpt2):
    folded = fold(gpt2, torch.float64)
    counts = torch.randint(1, 1000, (61,), generator=torch.Generator().manual_seed(2))
    log = (counts.double() + 1).log()
    towards = torch.linalg.lstsq(folded.unembedding.mT, (log - log.mean())[:, None]).solution.mT
    write = torch.cat((towards, -2 * towards, folded.neurons(0).write[:3]))
    found = frequency_alignment(folded, counts)(write)
    effects = write @ folded.unembedding
    expected = np.corrcoef(torch.cat((effects, log[None])).numpy())[-1, :-1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert found[0] == -found[1] > 0.5


def test_row_cosines_are_torchs():
    a, b = torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(row_cosine(a, b), torch.cosine_similarity(a, b))
