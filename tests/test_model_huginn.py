"""Huginn: its definition in float64, the authors' code, states, steps, masks, caches, addresses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from huginn_case import CONFIG, D, huginn_model, plain_forward, tokens, weights_of, write_checkpoint

import interpcore
from interpcore.model import Add, Cache, Edit, LowRank, Scale, Tap
from interpcore.model.state import DrawnState

SHARED = Path(os.environ.get("INTERPCORE_SHARED", Path(__file__).parents[2] / "shared"))
PEER = SHARED / "parity" / "steering"
SHAPES = {
    "as it is": {},
    "another": {
        "n_layers_in_prelude": 2,
        "n_layers_in_recurrent_block": 1,
        "n_layers_in_coda": 2,
        "n_heads": 2,
    },
    "untied": {"tie_embeddings": False, "bias": True, "qk_bias": False, "n_embd": 16, "n_heads": 4},
    "no coda": {"n_layers_in_coda": 0, "rope_base": 500.0, "norm_eps": 1e-2, "mean_recurrence": 1},
}


def normal(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_it_computes_its_definition(change, tmp_path):
    config = CONFIG | change
    weights = weights_of(config, seed=7)
    model = interpcore.load(write_checkpoint(tmp_path / "made", config, weights), dtype=torch.float64)
    steps, d, ids = config["mean_recurrence"], config["n_embd"], tokens()
    state, vector = normal(3, 9, d), normal(d, seed=3)
    outputs, logits = plain_forward(weights, config, ids, state, steps)
    taps = [Tap("block_out", depth) for depth in range(model.plan.n_calls)]
    ours = model.with_state(state).forward(ids, taps=taps)
    # Frequencies are float32 in the published code, and here.
    for depth, tap in enumerate(taps):
        same(ours.taps[tap], outputs[depth], 1e-6)
    same(ours.logits, logits, 1e-6)
    for steps in (1, 4):
        _, logits = plain_forward(weights, config, ids, state, steps)
        same(model.with_state(state).with_steps(steps).forward(ids).logits, logits, 1e-6)
    depth = model.plan.depth(("core", 0, -1))
    _, logits = plain_forward(weights, config, ids, state, config["mean_recurrence"], {depth: vector})
    edit = Edit("block_out", ("core", 0, -1), None, Add(vector))
    same(model.with_state(state).forward(ids, edits=[edit]).logits, logits, 1e-6)


def test_the_stored_case(tmp_path):
    with np.load(Path(__file__).parent / "data" / "parity_huginn.npz", allow_pickle=False) as file:
        stored = dict(file)
    weights = {
        n.removeprefix("model/"): torch.from_numpy(w) for n, w in stored.items() if n.startswith("model/")
    }
    folder = write_checkpoint(tmp_path / "made", json.loads(str(stored["config_json"])), weights)
    ids, state, vector = (torch.from_numpy(stored[name]) for name in ("ids", "state", "vector"))
    model = interpcore.load(folder, dtype=torch.float64).with_state(state)
    taps = [Tap("block_out", depth) for depth in range(9)]
    out = model.forward(ids, taps=taps)
    same(torch.stack([out.taps[tap] for tap in taps]), torch.from_numpy(stored["block_outputs"]), 1e-6)
    same(out.logits, torch.from_numpy(stored["logits"]), 1e-6)
    for depth in (0, 2, 5, 7, 8):
        logits = model.forward(ids, edits=[Edit("block_out", depth, None, Add(vector))]).logits
        same(logits, torch.from_numpy(stored[f"logits_add_at/{depth}"]), 1e-6)


@pytest.mark.skipif(not PEER.is_dir(), reason="the shared parity folder is not here")
def test_it_agrees_with_the_authors_code():
    with np.load(PEER / "arrays.npz") as file:
        peer = {n.removeprefix("huginn/"): torch.from_numpy(file[n]) for n in file if n.startswith("huginn/")}
    cases = json.loads((PEER / "cases.json").read_text())["huginn"]
    model = interpcore.load(PEER / "huginn_tiny").with_state(peer["state"])
    assert [f"{g}{b}" for g, b, _ in map(model.plan.address, range(16))] == cases["call_order"]
    ids, taps = peer["ids"].long(), [Tap("block_out", depth) for depth in range(16)]
    ours = model.forward(ids, taps=taps)
    for depth, tap in enumerate(taps):
        assert float((ours.taps[tap] - peer["block_outputs"][depth]).abs().max()) < 1e-5
    assert float((ours.logits - peer["logits"]).abs().max()) < 1e-5
    for depth in (1, 2, 7, 13, 14):  # twice the vector, at every position of the block's output
        added = Edit("block_out", depth, None, Add(2 * peer["vector"]))
        logits = model.forward(ids, edits=[added]).logits
        assert float((logits - peer[f"logits_add_at_{depth}"]).abs().max()) < 1e-5
    mask = torch.ones_like(ids)
    mask[1, :3] = 0  # which changes nothing there, and must
    assert float((model.forward(ids, mask).logits[1, 3:] - peer["logits"][1, 3:]).abs().max()) > 0.1


def test_what_stands_between_blocks_is_what_their_neighbours_read():
    """The adapter's output is resid of the core's first block, the normed state that of the coda's."""
    model = huginn_model(3)
    steps = range(3)
    entering = [Tap("resid", ("core", 0, t)) for t in steps]
    leaving = [Tap("block_out", ("core", 1, t)) for t in steps]
    read, coda = Tap("block_out", ("prelude", 0, 0)), Tap("resid", ("coda", 0, 0))
    taps = model.forward(tokens(), taps=[*entering, *leaving, read, coda]).taps
    for t in steps[1:]:
        same(taps[entering[t]], model.modules["adapter"](taps[leaving[t - 1]], taps[read]))
    same(taps[coda], model.final_norm(taps[leaving[-1]]))
    first = model.modules["state_seed_0"]
    drawn = torch.stack([first.at(p, D) for p in range(9)])
    same(taps[entering[0]], model.modules["adapter"](drawn.expand(3, -1, -1), taps[read]))


def test_in_a_plain_decoder_what_leaves_a_block_enters_the_next():
    model = interpcore.load("tiny-llama")
    out, after = Tap("block_out", 1), Tap("resid", 2)
    taps = model.forward(tokens(), taps=[out, after]).taps
    assert torch.equal(taps[out], taps[after])
    zero = Scale(0.0)
    both = [
        model.forward(tokens(), edits=[Edit(s, d, 3, zero)]).logits
        for s, d in (("block_out", 1), ("resid", 2))
    ]
    assert torch.equal(*both)


EDITS = [
    Edit("block_out", ("core", 1, slice(1, None)), slice(1, None), Add(normal(D))),
    Edit("resid", ("core", 0, range(2)), [0, 2], LowRank.ablate(normal(D, seed=4))),
    Edit("mlp_out", ("prelude", 0, 0), 1, Scale(0.5)),
    Edit("z", ("coda", 0, 0), slice(2, None), Scale(1.5), heads=[1]),
]


@pytest.mark.parametrize("edits", [[], EDITS], ids=["plain", "edited"])
@pytest.mark.parametrize("state", ["drawn", "given", "zero"])
def test_cached_padded_batched_alone(edits, state):
    ids, lengths = tokens(3, 11), torch.tensor([11, 4, 7])
    given = {"drawn": 5, "given": normal(3, 16, D, seed=5), "zero": None}[state]
    model = huginn_model(3).with_state(given)
    alone = []
    for row, n in enumerate(lengths.tolist()):
        own = model if state != "given" else model.with_state(given[row])
        alone.append(own.forward(ids[row : row + 1, :n], edits=edits).logits[0])
    for side in ("left", "right"):
        padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, n in enumerate(lengths.tolist()):
            at = slice(11 - n, 11) if side == "left" else slice(0, n)
            padded[row, at], mask[row, at] = ids[row, :n], 1
        logits = model.forward(padded, mask, edits=edits).logits
        for row in range(3):
            same(logits[row][mask[row].bool()], alone[row])
        head, rest = padded[:, :-2], padded[:, -2:]
        if side == "left":
            first = model.forward(head, mask[:, :-2], cache=Cache(), edits=edits)
            second = model.forward(rest, mask[:, -2:], cache=first.cache, edits=edits)
            for row in range(3):
                same(second.logits[row], alone[row][-2:])
        new = model.generate(padded, mask, max_new_tokens=4, edits=edits, stop_tokens=()).tokens
        for row, n in enumerate(lengths.tolist()):
            own = model if state != "given" else model.with_state(given[row])
            text = ids[row : row + 1, :n]
            for step in range(4):
                last = own.forward(text, edits=edits, logits_at="last").logits
                assert int(last.argmax()) == int(new[row, step])
                text = torch.cat([text, new[row, step][None, None]], 1)


ODD = {
    "3 prelude, 3 core, no coda, 7 steps": ((3, 3, 0), 7, {"n_embd": 24, "n_heads": 3}),
    "1 prelude, 5 core, 3 coda, 1 step": ((1, 5, 3), 1, {"n_embd": 36, "n_heads": 6, "qk_bias": False}),
    "4 prelude, 1 core, 2 coda, 5 steps": (
        (4, 1, 2),
        5,
        {"n_heads": 1, "tie_embeddings": False, "bias": True},
    ),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", ODD.values(), ids=ODD)
def test_odd_shapes_every_way_a_prompt_can_be_run(shape, side, tmp_path):
    """Other numbers of blocks, heads and steps: padded, batched, cached and token by token beside the plain
    definition of each row alone, with a vector written at a range of steps."""
    (prelude, core, coda), steps, change = shape
    counts = {"prelude": prelude, "recurrent_block": core, "coda": coda}
    config = CONFIG | {f"n_layers_in_{k}": n for k, n in counts.items()} | change
    weights, d = weights_of(config, seed=11), config["n_embd"]
    model = interpcore.load(write_checkpoint(tmp_path / "made", config, weights), dtype=torch.float64)
    state, vector = normal(3, 12, d, seed=12), normal(d, seed=13)
    model = model.with_steps(steps).with_state(state)
    assert model.plan.n_calls == prelude + core * steps + coda
    written = range(steps // 2, steps)
    edits = [Edit("block_out", ("core", core - 1, written), None, Add(vector))]
    at = {model.plan.depth(("core", core - 1, step)): vector for step in written}
    ids, lengths = tokens(3, 9, seed=14), (9, 2, 6)
    padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        place = slice(9 - n, 9) if side == "left" else slice(0, n)
        padded[row, place], mask[row, place] = ids[row, :n], 1
    logits = model.forward(padded, mask, edits=edits).logits
    said = model.generate(padded, mask, max_new_tokens=3, edits=edits, stop_tokens=()).tokens
    for row, n in enumerate(lengths):
        text = torch.cat([ids[row, :n], said[row]])[None]
        own = state[row : row + 1, : n + 3]
        _, want = plain_forward(weights, config, text, own, steps, at)
        same(logits[row][mask[row].bool()], want[0, :n], 1e-6)
        assert torch.equal(want[0, n - 1 : -1].argmax(-1), said[row])
        alone, cache = model.with_state(own), Cache()
        for step in range(n + 3):
            out = alone.forward(text[:, step : step + 1], cache=cache, edits=edits)
            cache = out.cache
            same(out.logits[0, 0], want[0, step], 1e-6)


def test_a_mask_changes_what_is_seen_and_nothing_else():
    model, ids = huginn_model(2), tokens(1, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    masked = model.forward(ids, mask).logits
    same(masked[:, 2:], model.forward(ids[:, 2:]).logits)
    assert float((masked - model.forward(ids).logits)[:, 2:].abs().max()) > 1e-3


def test_drawn_states_depend_on_seed_and_position_alone():
    state = DrawnState(3, 0.5)
    many = torch.stack([state.at(p, 4000) for p in range(8)])
    assert torch.equal(many[5], state.at(5, 4000)) and not torch.equal(many[0], many[1])
    assert not torch.equal(DrawnState(4, 0.5).at(0, 4000), many[0])
    assert float(many.abs().max()) <= 1.5
    # A normal distribution cut at three standard deviations has 0.973 of its variance.
    assert abs(float(many.var()) / 0.25 - 0.9733) < 0.02 and abs(float(many.mean())) < 0.01
    model, ids = huginn_model(2), tokens()
    plain = model.forward(ids).logits
    assert torch.equal(model.with_state(0).forward(ids).logits, plain)
    assert not torch.allclose(model.with_state(1).forward(ids).logits, plain)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        assert torch.equal(model.forward(ids).logits, plain)


def test_steps_and_states_stand_in_the_plan():
    model = huginn_model(2)
    assert (
        str(model.with_steps(1).plan) == "prelude 0, state_seed_0, adapter, core 0-1, core_norm, coda 0 (D=4)"
    )
    assert model.with_state(7).with_steps(4).with_steps(2).plan == model.with_state(7).plan
    assert "state_zero" in str(model.with_state(None).plan)
    value = normal(D)
    assert model.with_state(value).plan == model.with_state(value.clone()).plan
    assert model.with_state(value).plan != model.with_state(2 * value).plan
    same(
        model.with_state(value).forward(tokens()).logits,
        model.with_state(value.expand(9, D)).forward(tokens()).logits,
    )
    again = model.with_plan(model.with_state(12).plan)
    assert torch.equal(again.forward(tokens()).logits, model.with_state(12).forward(tokens()).logits)
    grown = model.with_plan(model.plan.repeat(("core", 0, 1), ("core", 1, 1)))
    assert torch.equal(grown.forward(tokens()).logits, model.with_steps(3).forward(tokens()).logits)
    cache = model.forward(tokens(), cache=Cache()).cache
    for other in (model.with_state(1), model.with_steps(3)):
        with pytest.raises(ValueError, match="filled under the plan"):
            other.forward(tokens(3, 1), cache=cache)


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p.swap(("core", 0, 1), ("core", 1, 1)),
        lambda p: p.repeat(("core", 1, 0)),
        lambda p: p.skip(("core", 0, 2), ("coda", 0, 0)),
        lambda p: p.permute([0, 2, 1, 3, 4, 6, 5, 7]),
    ],
)
def test_edited_recurrent_plans_keep_their_caches_apart(edit):
    model = huginn_model(3)
    model = model.with_plan(edit(model.plan))
    ids = tokens()
    whole = model.forward(ids).logits
    cache = model.forward(ids[:, :5], cache=Cache()).cache
    same(model.forward(ids[:, 5:], cache=cache).logits, whole[:, 5:])
    with pytest.raises(ValueError, match="set the steps first"):
        model.with_steps(2)


def test_a_run_from_the_middle_needs_what_is_still_read():
    model, ids = huginn_model(2), tokens()
    plan = model.plan
    assert [sorted(plan.needs(d)) for d in range(plan.n_calls + 1)] == [
        [],
        ["input"],
        ["input"],
        [],
        [],
        [],
        [],
    ]
    read = Tap("block_out", ("prelude", 0, 0))
    for depth in range(plan.n_calls + 1):
        tap = Tap("resid", depth)
        whole = model.forward(ids, taps=[tap, read])
        streams = {"input": whole.taps[read]} if plan.needs(depth) else None
        out = model.run_from(depth, whole.taps[tap], streams=streams, logits_at="all")
        same(out.logits, whole.logits)
    with pytest.raises(ValueError, match="also reads the stream"):
        model.run_from(("core", 1, 0), whole.taps[tap])


def test_the_family_says_what_it_is():
    model = huginn_model(2)
    assert not model.additive and model.block(0).norms_stream and model.plan.n_calls == 6
    names = [row["site"] for row in model.sites()]
    assert {"resid", "attn_out", "mlp_out", "block_out", "mlp_gate_pre", "q", "z", "scores"} <= set(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_moves_to_another_dtype(dtype):
    model = huginn_model(2)
    given = model.with_state(normal(9, D)).to(dtype=dtype)
    theirs = model.with_state(normal(9, D)).forward(tokens()).logits
    same(given.forward(tokens()).logits.double(), theirs, 1e-5 if dtype == torch.float32 else 0.1)
