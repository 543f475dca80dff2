"""Interventions: the affine form, cached = padded = batched = alone, files, recipes and refusals."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, transformers_model
from recurrent import recurrent_model
from steering_case import D, every_kind, some_directions, vector

import interpcore
from interpcore.errors import Refused
from interpcore.model import Add, Cache, Edit, Tap
from interpcore.model.call import read_address
from interpcore.model.maps import Selection
from interpcore.model.prompts import pad
from interpcore.steering.asking import depths_of
from interpcore.steering.interventions import Intervention, Part, Steer, each_site, everywhere
from interpcore.steering.moments import site_depths
from interpcore.steering.options import GenerateOptions


def check_one_result(model, tolerance):
    """Alone, padded on either side, batched, in one go and token by token from a cache: one result."""
    draw = torch.Generator().manual_seed(3)
    texts = [torch.randint(0, 61, (n,), generator=draw).tolist() for n in (9, 6, 11)]
    lengths = torch.tensor([5, 4, 8])
    totals = torch.tensor([len(t) for t in texts])
    intervention = every_kind(model)

    def forward(ids, mask, rows, **how):
        edits = intervention.edits(model, lengths[rows], totals[rows])
        return model.forward(ids, mask, edits=edits, **how)

    alone = [forward(torch.tensor([t]), None, [i]).logits[0] for i, t in enumerate(texts)]
    plain = model.forward(torch.tensor([texts[0]])).logits[0]
    assert float((alone[0] - plain).abs().max()) > 1e-3
    scale = max(float(a.abs().max()) for a in alone)

    def close(found, want):
        torch.testing.assert_close(found, want, rtol=0, atol=tolerance * scale)

    left = torch.tensor([[0] * (13 - len(t)) + t for t in texts])
    real_left = torch.arange(13) >= 13 - totals[:, None]
    for tokens, real in (pad(texts), (left, real_left)):
        logits = forward(tokens, real, [0, 1, 2]).logits
        for row, want in enumerate(alone):
            close(logits[row][real[row].bool()], want)
    if not model.keeps_cache:
        return
    for row, (text, want) in enumerate(zip(texts, alone, strict=True)):  # token by token
        edits = intervention.edits(model, lengths[[row]], totals[[row]])
        cache, found = Cache(), []
        for token in text:
            out = model.forward(torch.tensor([[token]]), cache=cache, edits=edits)
            cache, found = out.cache, [*found, out.logits[0, 0]]
        close(torch.stack(found), want)
    edits = intervention.edits(model, lengths, totals)  # rows of their own lengths, then a token each
    out = model.forward(*pad([t[:-4] for t in texts]), cache=Cache(), edits=edits)
    for row, text in enumerate(texts):
        close(out.logits[row, : len(text) - 4], alone[row][:-4])
    for ahead in range(4, 0, -1):
        column = torch.tensor([[t[-ahead]] for t in texts])
        out = model.forward(column, cache=out.cache, edits=edits)
        close(out.logits[:, 0], torch.stack([want[-ahead] for want in alone]))


@pytest.mark.parametrize(
    "family", [f for f in CONFIGS if f not in ("gpt2-by-layer", "gpt_neox-serial", "llama3-rope")]
)
def test_cached_is_padded_is_batched_is_alone(family):
    check_one_result(interpcore.load(transformers_model(family, dtype=torch.float64)), 1e-9)


def test_the_same_on_a_recurrent_model_and_through_the_generic_adapter():
    check_one_result(recurrent_model(3), 1e-9)
    model = interpcore.load(transformers_model("llama"))
    from interpcore.model.generic import GenericModel

    check_one_result(GenericModel.wrap(transformers_model("llama", dtype=torch.float64), "llama"), 1e-6)
    assert model.keeps_cache


def test_generation_is_the_forward_of_what_it_wrote():
    """Greedy tokens of a padded, cached batch are those of one forward over each finished text alone."""
    model = interpcore.load(transformers_model("qwen3", dtype=torch.float64))
    texts = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]
    ids, mask = pad(texts)
    intervention, n = every_kind(model), 6
    lengths = mask.sum(1)
    out = model.generate(
        ids, mask, max_new_tokens=n, edits=intervention.edits(model, lengths, more=n), stop_tokens=()
    )
    for row, text in enumerate(texts):
        whole = text + out.tokens[row].tolist()
        edits = intervention.edits(model, lengths[[row]], torch.tensor([len(whole)]))
        logits = model.forward(torch.tensor([whole]), edits=edits).logits[0]
        assert logits.argmax(-1)[len(text) - 1 : -1].tolist() == out.tokens[row].tolist()


def test_the_affine_form_does_what_each_kind_says():
    x, v, b = torch.randn(3, D, dtype=torch.float64), vector(1), vector(2)
    u = v / v.norm()
    at = Selection(torch.zeros(3, dtype=torch.int64), torch.arange(3))

    def run(kind, coefficient=1.0, **how):
        return Part("resid", 0, kind, v, coefficient, **how).map()(x, at)

    torch.testing.assert_close(run("add", 0.5), x + 0.5 * v)
    torch.testing.assert_close(run("amplify", 0.5), x + 0.5 * (x @ u)[:, None] * u)
    torch.testing.assert_close(run("ablate") @ u, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        (run("clamp", 3.0, bias=b) - b) @ u, torch.full((3,), 3.0, dtype=torch.float64)
    )
    across = x - (x @ u)[:, None] * u
    torch.testing.assert_close(run("clamp", 3.0) - 3 * u, across)
    left, right = torch.randn(2, D, dtype=torch.float64), torch.randn(2, D, dtype=torch.float64)
    low = Part("resid", 0, "low-rank", left, 0.3, right=right).map()
    torch.testing.assert_close(low(x, at), x + 0.3 * (x @ right.T) @ left)


def test_the_affine_forms_derivative_and_its_rows_at_once():
    x = torch.randn(4, 3, 8, dtype=torch.float64)  # selected, head, d_head
    maps = [
        Steer(torch.randn(2, 8).double(), torch.randn(2, 8).double(), torch.randn(8).double())
        for _ in range(4)
    ]
    one = Selection(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    t, g = torch.randn(5, 4, 3, 8).double(), torch.randn(5, 4, 3, 8).double()
    for m in maps:
        _, jvp = torch.func.jvp(lambda x, m=m: m(x, one), (x,), (t[0],))
        torch.testing.assert_close(m.jvp(t[0], x, one), jvp)
        a, b = (g * m.jvp(t, x, one)).sum(), (m.vjp(g, x, one) * t).sum()
        torch.testing.assert_close(a, b)
    rows = Selection(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    together = Steer.stacked(maps, 2)
    torch.testing.assert_close(
        together(x, rows),
        torch.stack([m(x[i : i + 1], Selection(one.row[:1], one.row[:1]))[0] for i, m in enumerate(maps)]),
    )
    torch.testing.assert_close(together.jvp(t, x, rows)[:, 2], maps[2].jvp(t, x, one)[:, 2])


@pytest.fixture(scope="module")
def model():
    return interpcore.load(transformers_model("llama", dtype=torch.float64))


def test_each_site_takes_its_own_direction_and_length(model):
    directions = some_directions(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = model.forward(ids, taps=[Tap("resid", 2)]).taps.popitem()[1]
    u = directions.vectors["resid"][2] / directions.vectors["resid"][2].norm()
    for scale, length in (
        ("unit", 1.0),
        ("norm", 3.0),
        ("own", float(directions.vectors["resid"][2].norm())),
    ):
        edits = each_site(directions, [2], scale=scale, coefficient=-0.5).edits(model, torch.tensor([4]))
        found = model.forward(ids, edits=edits, taps=[Tap("resid", 2)]).taps.popitem()[1]
        torch.testing.assert_close(found - plain, (-0.5 * length * u).expand(1, 4, D))
    noise = each_site(directions, [2], shuffle=0).parts[0].vector
    assert float(noise.norm()) == pytest.approx(1) and abs(float(noise @ u)) < 0.99
    with pytest.raises(Refused, match="1 shufflings"):
        each_site(directions, [2], shuffle=1)


def test_everywhere_is_one_direction_at_three_sites_of_every_block(model):
    r = vector(5)
    u, ids = r / r.norm(), torch.tensor([[5, 6, 7, 8]])
    found = everywhere(model, r, 0.1)
    assert len(found.parts) == 3 * model.plan.n_calls
    taps = [Tap(s, d) for d in range(4) for s in ("attn_out", "mlp_out")] + [
        Tap("resid", d) for d in range(5)
    ]
    ablated = everywhere(model, r, -1.0).edits(model, torch.tensor([4]))
    values = model.forward(ids, edits=ablated, taps=taps).taps
    for value in values.values():
        torch.testing.assert_close(value @ u, torch.zeros(1, 4).double(), atol=1e-10, rtol=0)
    assert all(part.site != "resid" or part.depth >= 2 for part in everywhere(model, r, 0.1, skip=2).parts)


def test_random_controls_have_the_lengths_and_no_other_likeness(model):
    given = each_site(some_directions(model), [1, 2], scale="norm", coefficient=2.0)
    control = given.random(4)
    for own, other in zip(given.parts, control.parts, strict=True):
        assert float(own.vector.norm()) == pytest.approx(float(other.vector.norm()))
        assert abs(float(torch.cosine_similarity(own.vector, other.vector, dim=0))) < 0.6
    assert not torch.equal(control.parts[0].vector, given.random(5).parts[0].vector)
    one = everywhere(model, vector(1)).random(0)
    assert all(torch.equal(part.vector, one.parts[0].vector) for part in one.parts)  # still one direction
    cosines = [
        float(torch.cosine_similarity(given.parts[0].vector, given.random(i).parts[0].vector, dim=0))
        for i in range(400)
    ]
    assert abs(sum(cosines) / 400) < 0.04 and 0.12 < torch.tensor(cosines).std() < 0.24  # 1 / sqrt(32)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"kind": "erase"}, "kind is one of"),
        ({"vector": None}, "needs a vector"),
        ({"vector": torch.full((D,), torch.inf)}, "finite"),
        ({"kind": "ablate", "vector": torch.zeros(D)}, "is zero"),
        ({"coefficient": float("nan")}, "coefficient nan"),
        ({"positions": "first"}, "Positions are"),
        ({"bias": torch.ones(D)}, "Only a clamp"),
        ({"kind": "low-rank"}, "as many right as left"),
        ({"kind": "function"}, "needs a function"),
    ],
)
def test_edits_that_mean_nothing_are_refused(given, said):
    with pytest.raises(Refused, match=said):
        Part(**({"site": "resid", "depth": 1, "kind": "add", "vector": torch.ones(D)} | given))


def test_an_intervention_of_another_shape_is_refused(model):
    for part, said in (
        (Part("resid", 1, "add", torch.ones(7)), "has 7 entries"),
        (Part("resid", 9, "add", torch.ones(D)), "depths 0 to 4"),
        (Part("mlp_pre", 1, "add", torch.ones(D)), "no site 'mlp_pre'"),
        (Part("mlp_act", 1, "add", torch.ones(D)), "the site has 48"),
    ):
        with pytest.raises(Refused, match=said):
            Intervention((part,)).check_model(model)


@pytest.mark.parametrize(
    "text, address",
    [
        ("core.1:8-15", ("core", 1, range(8, 16))),
        ("core 1, steps 8 to 15", ("core", 1, range(8, 16))),
        ("core 1 step 8", ("core", 1, 8)),
        ("core.1, steps 0-2", ("core", 1, range(3))),
        ("core.0", ("core", 0, slice(None))),
        ("coda.2:-1", ("coda", 2, -1)),
        (" -3", -3),
    ],
)
def test_block_calls_in_words(text, address):
    assert read_address(text) == address


def test_steps_in_words_are_those_edited():
    model = recurrent_model(4)
    found = depths_of(model, "resid", (0,), ("core.1:1-2", "core.0:-1"))
    plan = model.plan
    assert found == [0, plan.depth(("core", 1, 1)), plan.depth(("core", 1, 2)), plan.depth(("core", 0, -1))]
    with pytest.raises(ValueError, match="step 4 is not there"):
        depths_of(model, "resid", (), ("core.1:2-4",))
    words = GenerateOptions(calls=("core 1, steps 1 to 2,core.0:-1", "coda.0"))
    assert words.calls == ("core 1, steps 1 to 2", "core.0:-1", "coda.0")
    assert depths_of(model, "resid", (0,), words.calls[:2]) == found
    count = site_depths(model, "resid")
    assert depths_of(model, "resid", (0, -count, 1, 1 - count), ()) == [0, 1]  # one depth under two names
    for text, said in (("core:1", "no block call"), ("core.1:5-2", "run down"), ("", "no block call")):
        with pytest.raises(Refused, match=said):
            GenerateOptions(calls=(text,))


def test_a_shared_prefix_under_an_edit_of_one_row_is_not_that_of_several(model):
    """The same edits as those that the cache was filled under, in a batch of another size."""
    edit = Edit("resid", 1, None, Add(vector(1)), rows=[0])
    first = model.forward(torch.tensor([[3, 4]]), cache=Cache(), edits=[edit])
    alone = model.forward(torch.tensor([[5]]), cache=first.cache, edits=[edit]).logits
    whole = model.forward(torch.tensor([[3, 4, 5]]), edits=[edit]).logits[:, -1:]
    torch.testing.assert_close(alone, whole)
    with pytest.raises(ValueError, match="other edits"):
        model.forward(torch.tensor([[5], [6]]), cache=first.cache, edits=[edit])
    moved = Edit("resid", 1, -1, Add(vector(1)))  # a negative position is another one as the text grows
    first = model.forward(torch.tensor([[3, 4]]), cache=Cache(), edits=[moved])
    with pytest.raises(ValueError, match="other edits"):
        model.forward(torch.tensor([[5]]), cache=first.cache, edits=[moved])
