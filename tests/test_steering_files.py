"""Files of interventions and directions: ours, lm-eval's, control vectors, steering-vectors' form."""

from __future__ import annotations

import pytest
import torch
from families import transformers_model
from steering_case import D, every_kind, some_directions, vector
from torch import Tensor

import interpcore
from interpcore.errors import Refused
from interpcore.model.made_on import MadeOn
from interpcore.runs import RunError
from interpcore.steering import files
from interpcore.steering.directions import Directions
from interpcore.steering.interventions import Intervention, Part, each_site


@pytest.fixture(scope="module")
def model():
    return interpcore.load(transformers_model("llama", dtype=torch.float64))


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
