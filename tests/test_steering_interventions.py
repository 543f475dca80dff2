"""Interventions: the affine form, cached = padded = batched = alone, files, recipes and refusals."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, transformers_model
from recurrent import recurrent_model
from torch import Tensor

import interpcore
from interpcore.errors import Refused
from interpcore.model import Cache, Tap
from interpcore.model.made_on import MadeOn
from interpcore.model.maps import Selection
from interpcore.model.prompts import pad
from interpcore.runs import RunError
from interpcore.steering import files
from interpcore.steering.directions import Directions
from interpcore.steering.interventions import Intervention, Part, Steer, each_site, everywhere

D = 32


def vector(seed, width=D, scale=1.0):
    return scale * torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_kind(model):
    """One intervention that uses every kind of edit, place and positions."""
    last = model.plan.n_calls - 1
    low = torch.stack([vector(4), vector(5)]) / 30
    parts = [
        Part("resid", 1, "add", vector(1), 0.7, "onward"),
        Part("resid", 1, "amplify", vector(2), 0.4, "all"),
        Part("attn_out", 1, "ablate", vector(3), positions="last"),
        Part("mlp_out", last, "clamp", vector(1), 3.0, "answer", bias=vector(6)),
        Part("resid", last, "low-rank", low, 0.5, slice(2, None), right=low.flip(0)),
        Part("resid", 2, "add", vector(7), 0.3, (1, 3)),
        Part("resid", model.plan.n_calls, "function", positions="onward", function=lambda x: x * 1.1),
    ]
    if "z" not in model.spec.absent:
        head = vector(8, model.spec.d_head)
        parts.append(Part("z", 2, "add", head, 1.0, "onward", heads=(1,)))
    return Intervention(tuple(parts), "every kind")


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


def some_directions(model, sites=("resid", "attn_out", "mlp_out")):
    vectors = {
        s: torch.stack([vector(9 * i + len(s)) for i in range(model.plan.n_calls + (s == "resid"))])
        for s in sites
    }
    norms = {s: torch.arange(1.0, len(v) + 1).double() for s, v in vectors.items()}
    return Directions(vectors, norms, {s: v[None] + 1 for s, v in vectors.items()}, MadeOn.of(model))


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


def test_an_own_file_says_all_again(model, tmp_path):
    parts = tuple(p for p in every_kind(model).parts if p.kind != "function")
    given = Intervention(
        (*parts, Part("resid", ("block", 1, slice(0, None)), "add", vector(2))), "a", MadeOn.of(model)
    )
    files.save(tmp_path / "i.safetensors", given)
    again = files.load(tmp_path / "i.safetensors", model)
    assert again.name == "a" and again.made_on == given.made_on
    assert files.intervention_hash(again) == files.intervention_hash(given)
    lengths, ids = torch.tensor([5]), torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    logits = [
        model.forward(ids, edits=i.edits(model, lengths, torch.tensor([7]))).logits for i in (given, again)
    ]
    assert torch.equal(*logits)
    other = interpcore.load(transformers_model("llama", seed=9, dtype=torch.float64))
    with pytest.raises(Refused, match="other weights"):
        files.load(tmp_path / "i.safetensors", other)
    with pytest.raises(Refused, match="cannot be written"):
        files.save(tmp_path / "f.safetensors", every_kind(model))


def hooked(hf, hooks, ids):
    """Logits of a transformers model under output hooks by module name."""
    handles = []
    for name, change in hooks.items():

        def hook(module, args, out, change=change):
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        handles.append(hf.base_model.get_submodule(name).register_forward_hook(hook))
    logits = hf(torch.tensor(ids)).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize(
    "family, block, mlp", [("llama", "layers.1", "layers.2.mlp"), ("gpt2", "h.1", "h.2.mlp")]
)
def test_lm_evals_file_in_and_out(family, block, mlp, tmp_path):
    hf = transformers_model(family)
    model = interpcore.load(hf)
    v, w, b = (vector(i).float() for i in (1, 2, 3))
    content = {
        block: {
            "steering_vector": v,
            "steering_coefficient": 2.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        },
        mlp: {
            "steering_vector": w,
            "steering_coefficient": 1.5,
            "action": "clamp",
            "bias": b,
            "head_index": None,
        },
    }
    torch.save(content, tmp_path / "steer.pt")
    given = files.load(tmp_path / "steer.pt", model)
    assert [p.place for p in given.parts] == ["resid.2", "mlp_out.2"]
    u, ids = w / w.norm(), [[4, 8, 15, 16, 23]]
    hooks = {block: lambda x: x + 2 * v, mlp: lambda x: x + (1.5 - ((x - b) @ u))[..., None] * u}
    want = hooked(hf, hooks, ids)
    found = model.forward(torch.tensor(ids), edits=given.edits(model, torch.tensor([5]))).logits
    torch.testing.assert_close(found, want, atol=2e-5, rtol=0)
    files.write_lm_eval(tmp_path / "again.pt", given, model)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == content.keys() and torch.equal(again[mlp]["bias"], b)
    assert torch.equal(again[block]["steering_vector"], v) and again[block]["action"] == "add"
    with pytest.raises(Refused, match="all positions"):
        files.write_lm_eval(
            tmp_path / "x.pt", each_site(some_directions(model), [1], positions="last"), model
        )


def test_one_head_and_two_edits_of_one_module_which_lm_eval_cannot(model, tmp_path):
    hf = transformers_model("llama", dtype=torch.float64)
    h = vector(2, 8)
    content = {
        "layers.1.self_attn.v_proj": {
            "steering_vector": h,
            "steering_coefficient": 3.0,
            "action": "clamp",
            "bias": None,
            "head_index": 1,
        }
    }
    torch.save(content, tmp_path / "head.pt")
    given = files.load(tmp_path / "head.pt", model)
    u = h / h.norm()

    def change(x):
        x = x.clone()
        x[..., 8:] += (3 - x[..., 8:] @ u)[..., None] * u
        return x

    want = hooked(hf, {"layers.1.self_attn.v_proj": change}, [[4, 8, 15]])
    found = model.forward(torch.tensor([[4, 8, 15]]), edits=given.edits(model, torch.tensor([3]))).logits
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
    coder = tmp_path / "coder"
    coder.mkdir()
    from safetensors.torch import save_file

    decoder = torch.randn(6, D)
    save_file({"W_dec": decoder, "b_dec": torch.ones(D)}, coder / "sae.safetensors")
    table = tmp_path / "steer.csv"
    head = "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,head_index,sae_id\n"
    row = f"sparsify,add,{coder},layers.1,{{}},2.0,,\n"
    table.write_text(head + row.format(3) + row.format(5))
    both = files.load(table, model)
    assert len(both.parts) == 2  # lm-eval's own keeps one, and adds none for the bias
    torch.testing.assert_close(both.parts[1].vector, decoder[5].double())
    table.write_text(head + row.format(6))
    with pytest.raises(Refused, match="feature 6 is outside a coder of 6"):
        files.load(table, model)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_files_of_others_that_do_not_serve(model, tmp_path, capsys):
    path = tmp_path / "steer.pt"
    good = {"steering_vector": vector(1), "steering_coefficient": 1.0, "action": "add"}
    for content, said in (
        ({"layers.9": good}, "has blocks 0 to 3"),
        ({"layers.x": good}, "no module"),
        ({"layers.1": good | {"action": "erase"}}, "there are add and clamp"),
        ({"layers.1": good | {"steering_vector": vector(1, 7)}}, "has 7 entries; the site has 32"),
        ({"layers.1": good | {"steering_vector": vector(1) * float("nan")}}, "finite"),
        ({"layers.1": good | {"action": "clamp", "steering_vector": 0 * vector(1)}}, "is zero"),
        ({"layers.1": good | {"steering_coefficient": "2"}}, "not a number"),
        ({"layers.1": good | {"head_index": 0}}, "has no heads"),
        ({"layers.1": good | {"more": 0}}, "unknown key"),
        ([1], "no steering vectors"),
        ({"layers.1": Evil()}, "damaged, or holds other objects"),
    ):
        torch.save(content, path)
        with pytest.raises((Refused, RunError), match=said):
            files.load(path, model)
    assert "unpickled" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="damaged"):
        files.load(path, model)
    with pytest.raises(Refused, match="There is no steering file"):
        files.load(tmp_path / "none.pt", model)
    with pytest.raises(Refused, match="none of"):
        files.load(tmp_path / "none.txt", model)


def test_control_vectors_and_the_steering_vectors_form(model, tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    vectors = {layer: vector(layer).float() for layer in (1, 2)}
    for layer, v in vectors.items():
        writer.add_tensor(f"direction.{layer}", v.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = files.load(tmp_path / "v.gguf", model)
    assert [(p.site, p.depth, p.kind) for p in found.parts] == [("resid", 2, "add"), ("resid", 3, "add")]
    torch.testing.assert_close(found.parts[0].vector.float(), vectors[1])
    (tmp_path / "v.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(RunError, match=r"damaged or no GGUF|no direction"):
        files.load(tmp_path / "v.gguf", model)
    torch.save({"layer_activations": dict(vectors), "layer_type": "mlp"}, tmp_path / "s.pt")
    parts = files.load(tmp_path / "s.pt", model).parts
    assert [(p.site, p.depth) for p in parts] == [("mlp_out", 1), ("mlp_out", 2)]


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


def test_directions_of_another_model_site_or_depth(model, tmp_path):
    directions = some_directions(model)
    directions.save(tmp_path / "d.safetensors")
    again = Directions.load(tmp_path / "d.safetensors")
    for name in ("vectors", "norms", "shuffled"):
        for site, value in getattr(directions, name).items():
            assert isinstance(value, Tensor) and torch.equal(getattr(again, name)[site], value)
    again.check_model(model)
    other = interpcore.load(transformers_model("llama", seed=9))
    with pytest.raises(Refused, match="other weights"):
        again.check_model(other)
    again.check_model(other, other_model=True)
    with pytest.raises(Refused, match=r"of width 32; LlamaForCausalLM has [34] of 32"):
        again.check_model(model.with_plan(model.plan.skip(1)), other_model=True)
    with pytest.raises(Refused, match="not of embed"):
        again.unit("embed", 0)
    with pytest.raises(Refused, match="depths 0 to 4"):
        again.unit("resid", 7)
    broken = Directions({"resid": torch.zeros(2, D)}, {"resid": torch.ones(2)})
    with pytest.raises(Refused, match="is zero"):
        broken.unit("resid", 1)
    broken.vectors["resid"][0, 0] = torch.nan
    with pytest.raises(Refused, match="not finite"):
        broken.unit("resid", 0)
    with pytest.raises(RunError, match="holds no directions"):
        files.save(tmp_path / "i.safetensors", Intervention((Part("resid", 0, "add", torch.ones(D)),)))
        Directions.load(tmp_path / "i.safetensors")
