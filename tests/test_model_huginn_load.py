"""Huginn checkpoints: what is refused, what is read, what another process and other families see."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from huginn_case import CONFIG, D, huginn_model, tokens, weights_of, write_checkpoint

import interpcore
from interpcore.circuits.graph import Graph
from interpcore.errors import Refused
from interpcore.model import Call, Plan
from interpcore.model.made_on import MadeOn
from interpcore.model.weights import weights_hash
from interpcore.neurons.weights.fold import fold


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


def test_other_depth_recurrent_families_are_refused_by_name(tmp_path):
    """Whatever else their folders hold: their code would run, or their blocks be taken to run once."""
    import transformers as tf

    for family, why in (("ouro", "several times over"), ("hrm_text", "heads gated")):
        config = {"model_type": family, "auto_map": {"AutoConfig": "a.B"}}
        folder = write_checkpoint(tmp_path / family, config, {"x": torch.zeros(1)})
        for trust in (False, True):
            with pytest.raises(Refused, match=rf"of the family {family} \(.*{why}"):
                interpcore.load(folder, trust_remote_code=trust)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = tf.HrmTextConfig(**sizes, head_dim=8, num_layers_per_stack=1, pad_token_id=0)
    with pytest.raises(Refused, match="of the family hrm_text"):
        interpcore.load(tf.AutoModelForCausalLM.from_config(config))
