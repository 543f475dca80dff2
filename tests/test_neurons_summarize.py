"""summarize: against all activations at once; merged, in several passes, and on bad input."""

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from families import transformers_model
from recurrent import recurrent_model
from summary_case import BATCH, CONTEXT, EVERYTHING, SEQUENCES, expect_same_bits, run, shards, states
from torch import Tensor

import interpcore
from interpcore import ops
from interpcore.data.tokens import TokenShards
from interpcore.model import Model, Tap
from interpcore.model.generic import GenericModel
from interpcore.neurons.statistics.accumulate import Sizes, Statistics, plan_passes
from interpcore.neurons.statistics.mlp_sides import default_batch
from interpcore.neurons.statistics.summarize import estimate, part_range
from interpcore.neurons.statistics.summary import merge_summaries
from interpcore.runs import RunError
from interpcore.stats import GroupSums, Histogram, LinearBins, MergeError, OctaveBins, TokenBlock, TopExamples


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "recurrent", "adapter"])
def model(request: pytest.FixtureRequest) -> Model:
    if request.param == "recurrent":
        return recurrent_model(1)
    if request.param == "adapter":
        return cast(Model, GenericModel.wrap(transformers_model("llama"), "some-model"))
    return interpcore.load(transformers_model(request.param))


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return interpcore.load(transformers_model("gpt2"))


def activations(model: Model, tokens: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Pre and post [token, neuron] of a block call, from taps."""
    taps = Tap("mlp_gate_pre" if model.spec.gated else "mlp_pre", depth), Tap("mlp_act", depth)
    out = model.forward(tokens, taps=taps, logits_at=None)
    return out.taps[taps[0]].flatten(0, 1), out.taps[taps[1]].flatten(0, 1)


def test_statistics_are_those_of_all_activations_at_once(model: Model, tmp_path: Path) -> None:
    tokens = shards().sequences(0, SEQUENCES)
    mask = shards().mask(tokens).flatten()
    summary = run(model, tmp_path / "run")
    assert (summary.n_tokens, summary.n_layers) == (SEQUENCES * CONTEXT, 4)
    block = TokenBlock.of_sequences(tokens, 0)
    for depth in range(4):
        pre, post = activations(model, tokens, depth)
        n = pre.shape[1]
        for got, x in zip(summary.moments(depth), (pre, post), strict=True):
            exact = ops.column_moments(x, mask, backend="reference")
            assert torch.equal(got.count, exact.count)
            for name in ("mean", "variance", "minimum", "maximum"):
                torch.testing.assert_close(getattr(got, name), getattr(exact, name), rtol=2e-5, atol=1e-6)
            torch.testing.assert_close(got.kurtosis, exact.kurtosis, rtol=2e-4, atol=0)
        assert torch.equal(
            summary.moments(depth)[0].above, torch.stack([(pre[mask] > t).sum(0) for t in (0.0, -0.098)])
        )
        for published, bins in ((False, OctaveBins()), (True, LinearBins())):
            expected = Histogram(n, bins)
            expected.update(pre, block, mask)
            counts = summary.histogram(depth, published=published).counts
            # A value in another batch may round to the other side of an edge.
            assert (counts - expected.finalize().counts).abs().sum() <= 4
        top = TopExamples(n, 3)
        top.update(post, block, mask)
        torch.testing.assert_close(summary.examples(depth).value, top.finalize().value, rtol=1e-5, atol=1e-6)
        at = summary.examples(depth).index
        torch.testing.assert_close(
            post.gather(0, at).float(), summary.examples(depth).value, rtol=1e-5, atol=1e-6
        )
        assert mask[at].all()
        for kind, size, x in (("position", CONTEXT, pre), ("token", 61, post), ("previous", 61, post)):
            sums = GroupSums(kind, size, torch.zeros(n))
            sums.update(x, block, mask)
            mine, exact = summary.groups(kind, depth), sums.finalize()
            assert torch.equal(mine.count, exact.count) and (mine.largest is not None) == (kind == "token")
            if mine.largest is not None:
                least = torch.full((1, n), -torch.inf)
                of_token = [torch.cat((least, x[mask & (tokens.flatten() == t)])) for t in mine.ids]
                most = torch.stack([each.amax(0) for each in of_token])
                torch.testing.assert_close(mine.largest, most.float(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mine.mean, exact.mean, rtol=1e-4, atol=1e-6, equal_nan=True)
            torch.testing.assert_close(mine.variance, exact.variance, rtol=1e-3, atol=1e-6, equal_nan=True)
    quantiles = summary.quantiles(3, (0.0, 0.5, 1.0))
    assert (quantiles[1:] >= quantiles[:-1]).all()


def test_the_factor_beside_the_gate(gpt2: Model, tmp_path: Path) -> None:
    gated = interpcore.load(transformers_model("llama"), check=False)
    tokens = shards().sequences(0, SEQUENCES)
    mask, tap = shards().mask(tokens).flatten(), Tap("mlp_up", 2)
    exact = gated.forward(tokens, taps=[tap], logits_at=None).taps[tap].flatten(0, 1)[mask].double()
    up = Statistics(up=True)
    got = run(gated, tmp_path / "run", up).up_moments(2)
    assert (got.count == int(mask.sum())).all()
    torch.testing.assert_close(got.mean, exact.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.variance, exact.var(0, correction=0), rtol=1e-5, atol=0)
    halves = [run(gated, tmp_path / f"{a}", up, span=(a, a + 20 - a // 5)) for a in (0, 20)]
    merged = merge_summaries([half.folder for half in halves], tmp_path / "both").up_moments(2)
    torch.testing.assert_close(merged.m4, got.m4, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="MLPs without a gate, so there is no factor"):
        run(gpt2, tmp_path / "none", up)


def test_several_passes_are_one(gpt2: Model, tmp_path: Path) -> None:
    one = run(gpt2, tmp_path / "one")
    memory = 100_000
    sizes = Sizes((128,) * 4, CONTEXT, 61)
    passes = plan_passes(EVERYTHING, sizes, memory)
    assert len(passes) > 5
    several = run(gpt2, tmp_path / "several", memory=memory)
    for depth in range(4):
        for mine, other in zip(several.moments(depth), one.moments(depth), strict=True):
            assert torch.equal(mine.m4, other.m4)
        assert torch.equal(several.examples(depth).index, one.examples(depth).index)
        for kind in ("position", "token", "previous"):
            mine, other = several.groups(kind, depth), one.groups(kind, depth)
            assert torch.equal(mine.total, other.total)
            assert torch.equal(mine.values, other.values)
    assert sum(part.kind == "token" for parts in passes for part in parts) == 8
    places = Statistics(histogram=False, published=False, top=0)
    cut = run(gpt2, tmp_path / "cut", places, memory=30_000)
    assert sum((part.kind, part.depth) == ("position", 2) for part in cut.files) == 2
    mine, other = cut.groups("position", 2), one.groups("position", 2)
    assert torch.equal(mine.active, other.active) and torch.equal(mine.total, other.total)
    with pytest.raises(ValueError, match=r"do not hold moments sums of .* GB, which cannot be cut"):
        run(gpt2, tmp_path / "none", memory=10_000)


def test_sums_by_token_hold_the_ids_that_occur(gpt2: Model, tmp_path: Path) -> None:
    """Of a corpus with five of 61 ids: a fifth of the memory, the same sums, in halves too."""
    only = Statistics(histogram=False, published=False, top=0, position=False, by_token=("token", "previous"))
    ids = torch.tensor([3, 8, 20, 41, 60])
    tokens = ids[torch.randint(5, (SEQUENCES, CONTEXT), generator=torch.Generator().manual_seed(1))]
    few = TokenShards.of_arrays(tokens, 61, masks={})
    assert few.ids().tolist() == ids.tolist()
    whole = run(gpt2, tmp_path / "whole", only, shards=few)
    assert whole.sizes.tokens == 5 and whole.sizes.groups("token") == 5
    parts = [run(gpt2, tmp_path / f"{a}", only, shards=few, span=(a, a + 20 - a // 5)) for a in (0, 20)]
    halves = merge_summaries([part.folder for part in parts], tmp_path / "both")
    _, post = activations(gpt2, tokens, 2)
    for got in (whole.groups("token", 2), halves.groups("token", 2)):
        assert got.ids.tolist() == ids.tolist()
        for g, i in enumerate(ids):
            rows = post[tokens.flatten() == i].double()
            torch.testing.assert_close(got.mean[g], rows.mean(0), rtol=1e-5, atol=1e-6)
            assert int(got.count[g]) == len(rows)
    assert estimate(gpt2, few, only, batch=BATCH, memory=60_000, seconds=0.0).passes < len(
        plan_passes(only, Sizes((128,) * 4, CONTEXT, 61), 60_000)
    )


def test_two_halves_merge_into_the_whole(gpt2: Model, tmp_path: Path) -> None:
    whole = run(gpt2, tmp_path / "whole")
    run(gpt2, tmp_path / "a", span=(0, 16))
    run(gpt2, tmp_path / "b", span=(16, SEQUENCES))
    merged = merge_summaries([tmp_path / "b", tmp_path / "a"], tmp_path / "merged")
    assert str(merged.ranges) == f"0 to {SEQUENCES}"
    expect_same_bits(run(gpt2, tmp_path / "merged"), merged)
    mine, other = states(merged), states(whole)
    for name, x in mine.items():
        if name.startswith("moments") and name.endswith("moments"):
            m2 = other[name][1]
            assert ((x[2] - other[name][2]).abs() <= 1e-12 * m2**1.5).all()
            keep = [0, 1, 3, 4, 5]
            torch.testing.assert_close(x[keep], other[name][keep], rtol=1e-12, atol=0)
        elif x.dtype == torch.float64:
            torch.testing.assert_close(x, other[name], rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(x, other[name]), name


def test_parts_cover_the_tokens_on_the_grid() -> None:
    for of in (1, 2, 5, 9):
        ranges = [part_range(shards(), number, of, BATCH) for number in range(1, of + 1)]
        assert [r[0] for r in ranges] == [0, *(r[1] for r in ranges[:-1])]
        assert ranges[-1][1] == SEQUENCES
        assert all(start < stop and start % BATCH == 0 for start, stop in ranges)
    for number, of in ((0, 2), (3, 2), (1, 10)):
        with pytest.raises(ValueError, match=f"Part {number}/{of} is none"):
            part_range(shards(), number, of, BATCH)


def test_a_device_reads_32k_tokens_at_once_and_the_cpu_as_few_as_stay_in_its_cache() -> None:
    cpu, gpu, context = torch.device("cpu"), torch.device("cuda", 1), shards().context
    assert default_batch(context, cpu) * context == 2048 // context * context
    assert 32_768 <= default_batch(context, gpu) * context < 32_768 + context


def test_what_does_not_belong_together_is_not_merged(gpt2: Model, tmp_path: Path) -> None:
    few = Statistics(top=2, histogram=False, published=False, position=False)
    run(gpt2, tmp_path / "a", few, span=(0, 16))
    run(gpt2, tmp_path / "b", few, span=(12, 24))
    run(gpt2, tmp_path / "c", few, span=(16, 24), shards=shards().with_mask(("padding",)))
    other = interpcore.load(transformers_model("gpt2", seed=1))
    run(other, tmp_path / "d", few, span=(16, 24))
    shutil.copytree(tmp_path / "b", tmp_path / "e")
    for folder, error, sentence in (
        ("b", MergeError, "Sequences 12 to 16 are in both"),
        ("c", RunError, "masks is"),
        ("d", RunError, "weights is"),
    ):
        with pytest.raises(error, match=sentence):
            merge_summaries([tmp_path / "a", tmp_path / folder], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


def test_defects_are_counted_and_named(tmp_path: Path) -> None:
    hf = transformers_model("gpt2")
    mlp = hf.transformer.h[1].mlp
    mlp.c_fc.weight.data[:, 5], mlp.c_fc.bias.data[5] = 0.0, -3.0
    mlp.c_fc.weight.data[:, 7], mlp.c_fc.bias.data[7] = 1e38, 0.0
    mlp.c_proj.weight.data[7] = 0.0
    clean = transformers_model("gpt2")
    broken = interpcore.load(hf, check=False)
    got = run(broken, tmp_path / "broken")
    good = run(interpcore.load(clean), tmp_path / "good")
    rows = got.defects()
    assert {"layer": 1, "neuron": 5, "defect": "dead", "tokens": int(got.moments(1)[0].count[5])} in rows
    assert {"layer": 1, "neuron": 5, "defect": "constant", "tokens": int(got.moments(1)[1].count[5])} in rows
    assert any((r["layer"], r["neuron"], r["defect"]) == (1, 7, "non-finite") for r in rows)
    assert not [r for r in good.defects() if r["layer"] == 0]
    others = torch.tensor([n not in (5, 7) for n in range(128)])
    for mine, same in zip(got.moments(1), good.moments(1), strict=True):
        assert torch.equal(mine.m4[others], same.m4[others])
    assert got.groups("token", 1).total.isfinite().all()


def test_one_position_alone(gpt2: Model, tmp_path: Path) -> None:
    """Counting one position: the sums of all activations there, under another key, in parts as whole."""
    last = shards().with_positions([-1])
    assert last.positions == (CONTEXT - 1,) and last.left_out[-1] == "all positions but 15"
    got = run(gpt2, tmp_path / "last", shards=last)
    everywhere = run(gpt2, tmp_path / "all")
    assert got.card.key != everywhere.card.key
    tokens = shards().sequences(0, SEQUENCES)
    here = shards().mask(tokens)[:, -1]
    pre, post = (x.unflatten(0, tokens.shape)[:, -1][here].double() for x in activations(gpt2, tokens, 2))
    for moments, x in zip(got.moments(2), (pre, post), strict=True):
        assert moments.count.unique().tolist() == [len(x)]
        torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(moments.variance, x.var(0, correction=0), rtol=1e-4, atol=1e-9)
    table = got.to_pandas()
    of_two = table[table.layer == 2]
    np.testing.assert_allclose(of_two["mean"], pre.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(of_two.frequency, (pre > 0).double().mean(0))
    assert repr(got).startswith("Summary(") and len(repr(got)) < 200 + len(str(tmp_path))
    assert got.groups("position", 2).count.nonzero()[:, 0].tolist() == [CONTEXT - 1]
    with pytest.raises(ValueError, match="Position 16 is outside sequences of 16 tokens; give 0 to 15"):
        shards().with_positions([16])


def test_masked_batches(gpt2: Model, tmp_path: Path) -> None:
    few = Statistics(top=2)
    tokens = shards().sequences(0, SEQUENCES)
    tokens[8:16] = 0
    kept = torch.cat((tokens[:8], tokens[16:]))
    masks = {"padding": [0], "bos": [1]}
    some = TokenShards.of_arrays(tokens, 61, masks=masks)
    got = run(gpt2, tmp_path / "some", few, shards=some)
    expected = run(gpt2, tmp_path / "kept", few, shards=TokenShards.of_arrays(kept, 61, masks=masks))
    for depth in range(4):
        for mine, same in zip(got.moments(depth), expected.moments(depth), strict=True):
            assert torch.equal(mine.m4, same.m4)
    with pytest.raises(ValueError, match="leave none of the 576 tokens"):
        nothing = TokenShards.of_arrays(tokens * 0, 61, masks=masks)
        run(gpt2, tmp_path / "none", few, shards=nothing)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"span": (0, 10)}, "Sequence 10 is within a batch of 4"),
        ({"span": (8, 8)}, "Sequences 8 to 8 are no range of the 36"),
        ({"span": (0, 40)}, "no range of the 36"),
        ({"batch": 0}, "batch=0 reads nothing"),
        ({"shards": shards(vocabulary=200)}, "61 embeddings"),
    ],
)
def test_bad_input_is_refused(options: dict, sentence: str, gpt2: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(gpt2, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_model_without_readable_neurons_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=8)
    generic: Any = GenericModel.wrap(transformers.MambaForCausalLM(config).eval(), "some-model")
    with pytest.raises(ValueError, match="No study can see the activations of some-model"):
        run(generic, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_estimate(gpt2: Model) -> None:
    found = estimate(gpt2, shards(), EVERYTHING, batch=BATCH, memory=100_000, seconds=0.0)
    sizes = Sizes((128,) * 4, CONTEXT, 61)
    assert found.passes == len(plan_passes(EVERYTHING, sizes, 100_000))
    assert found.tokens == SEQUENCES * CONTEXT
    assert 0 < found.memory <= 100_000 < found.disk
    assert found.hours == pytest.approx(found.passes * found.tokens / found.tokens_per_second / 3600)
    assert "tokens/s" in str(found)


def test_state_sizes_are_as_planned(gpt2: Model, tmp_path: Path) -> None:
    summary = run(gpt2, tmp_path / "run")
    for part in summary.files:
        held = sum(x.nbytes for x in summary.load(part).state_dict().values())
        planned = (part.stop - part.start) * summary.sizes.bytes_per_neuron(part.kind, EVERYTHING)
        assert held == pytest.approx(planned, rel=0.05, abs=2000)
