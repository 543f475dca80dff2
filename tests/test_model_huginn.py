"""Huginn: its definition in float64, the authors' code, states, steps, masks, caches, addresses, what is
refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from huginn_case import CONFIG, huginn_model, plain_forward, weights_of, write_checkpoint

import interpcore
from interpcore.circuits.graph import Graph
from interpcore.model import Add, Cache, Call, Edit, LowRank, Plan, Scale, Tap
from interpcore.model.made_on import MadeOn
from interpcore.model.state import DrawnState
from interpcore.model.weights import weights_hash
from interpcore.neurons.weights.fold import fold

SHARED = Path(os.environ.get("INTERPCORE_SHARED", Path(__file__).parents[2] / "shared"))
D = CONFIG["n_embd"]
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


def tokens(rows: int = 3, n: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(61, (rows, n), generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, None])
def test_no_less_than_one_step(steps):
    with pytest.raises(ValueError, match="at least 1 step"):
        huginn_model(2).with_steps(steps)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (torch.zeros(23), r"or \[rows, position, 32\]; got shape \[23\]"),
        (torch.zeros(0, D), "got shape"),
        (torch.zeros(1, 1, 9, D), "got shape"),
        (torch.full((D,), torch.nan), "finite"),
        (torch.zeros(D, dtype=torch.int64), "floating-point"),
        (-1, "a seed from 0"),
        (True, "a seed from 0"),
        ("zero", "a seed from 0"),
    ],
)
def test_states_of_another_shape_are_refused(state, sentence):
    with pytest.raises(ValueError, match=sentence):
        huginn_model(2).with_state(state)


def test_states_that_do_not_cover_a_forward_are_refused():
    model = huginn_model(2)
    with pytest.raises(ValueError, match="given for 2 rows; this forward has 3"):
        model.with_state(torch.zeros(2, 9, D)).forward(tokens())
    with pytest.raises(ValueError, match="given for 8 positions; this forward reaches position 8"):
        model.with_state(torch.zeros(8, D)).forward(tokens())


def test_a_model_without_recurrence_has_no_steps():
    model = interpcore.load("tiny")
    for change in (lambda: model.with_steps(2), lambda: model.with_state(0)):
        with pytest.raises(ValueError, match="has no recurrence"):
            change()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_embd": None}, "n_embd is None"),
        ({"n_heads": 5}, "5 heads"),
        ({"n_heads": 32}, "an even size"),
        ({"mean_recurrence": 0}, "mean_recurrence is 0"),
        ({"n_layers_in_prelude": 0}, "n_layers_in_prelude is 0"),
        ({"n_layers_in_coda": 2}, r"no tensor transformer\.coda\.1"),
        ({"vocab_size": 60}, r"shape \[61, 32\]; its config asks for \[60, 32\]"),
        ({"intermediate_size": 19}, "its config asks for"),
        ({"tie_embeddings": False}, r"no tensor lm_head\.weight"),
        ({"nonlin_name": "GELU"}, "nonlin_name is 'GELU'"),
        ({"injection_type": "add"}, "injection_type"),
        ({"test_time_noise": 0.1}, "test_time_noise"),
        ({"num_key_value_heads": 1}, "share keys and values"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(change, sentence, tmp_path):
    folder = write_checkpoint(tmp_path / "made", CONFIG | change, weights_of(CONFIG))
    with pytest.raises(ValueError, match=sentence):
        interpcore.load(folder)


def test_a_size_that_is_missing_and_weights_that_are_nan_are_named(tmp_path):
    weights = weights_of(CONFIG)
    config = {name: value for name, value in CONFIG.items() if name != "block_size"}
    with pytest.raises(ValueError, match="missing key 'block_size'"):
        interpcore.load(write_checkpoint(tmp_path / "a", config, weights))
    weights["transformer.ln_f.weight"][0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in transformer\.ln_f"):
        interpcore.load(write_checkpoint(tmp_path / "b", CONFIG, weights))


def test_its_generation_config_says_where_a_text_ends(tmp_path):
    folder = write_checkpoint(tmp_path / "made", CONFIG, weights_of(CONFIG))
    assert interpcore.load(folder).spec.stop_tokens == ()
    for said, stops in ((7, (7,)), ([7, 9], (7, 9)), (None, ())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
        assert interpcore.load(folder).spec.stop_tokens == stops


def test_another_process_loads_it_with_its_steps_and_seed(tmp_path):
    model = interpcore.load(write_checkpoint(tmp_path / "made", CONFIG, weights_of(CONFIG)))
    other = model.with_steps(5).with_state(3)
    again = pickle.loads(pickle.dumps(other.reloader()))()
    assert again.plan == other.plan and weights_hash(again) == weights_hash(model) == weights_hash(other)
    assert torch.equal(again.forward(tokens()).logits, other.forward(tokens()).logits)
    given = model.with_state(torch.zeros(9, D))
    assert weights_hash(given) == weights_hash(model) and MadeOn.of(given) != MadeOn.of(model)
    with pytest.raises(ValueError, match="given as a tensor, which another process cannot make"):
        given.reloader()


def test_what_needs_an_additive_stream_refuses_it_by_name():
    model = huginn_model(2)
    with pytest.raises(ValueError, match=r"huginn_raven\) norm the stream after each branch"):
        fold(model)
    with pytest.raises(ValueError, match="plans of blocks one after the other"):
        Graph.of(model)
    with pytest.raises(ValueError, match="norm the stream after each branch"):
        Graph.of(model.with_plan(Plan((Call("core.0"), Call("coda.0")))))


def test_a_hub_id_is_read_from_the_cache_without_its_code(tmp_path, monkeypatch):
    from huggingface_hub import HfApi, constants

    home = tmp_path / "models--someone--huginn-small"
    snapshot = home / "snapshots" / ("a" * 40)
    write_checkpoint(snapshot, CONFIG, weights_of(CONFIG))
    (snapshot / "raven_modeling_minimal.py").write_text("raise SystemExit('ran')")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)

    def unreachable(self, *args, **how):
        raise ConnectionError("no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    model = interpcore.load("someone/huginn-small")
    assert model.spec.recurrence is not None and model.origin.source == "someone/huginn-small"
    assert weights_hash(model) == weights_hash(interpcore.load(snapshot))


def test_what_differs_between_families_is_said():
    said = huginn_model().structure
    assert said == {"positions": "rotary", "middle stream": said["middle stream"], "additive residual": False}
    tiny = interpcore.load("tiny")
    assert tiny.structure["positions"] == "learned" and tiny.structure["additive residual"]
    assert tiny.facts()["middle stream"] is True
