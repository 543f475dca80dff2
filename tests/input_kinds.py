"""Inputs of every kind but circuits': a good one, and what reads it and sees that it is whole."""

from __future__ import annotations

import json
import sqlite3
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dictionary_case
import mutations
import numpy as np
import torch
import transformers as tf

import interpcore
from interpcore.data.eval_logs import EvalLog, write_eval_log
from interpcore.data.question_sets import read_questions
from interpcore.data.questions import generate
from interpcore.data.relations import load_relations
from interpcore.data.tinyworld.models import model_folder
from interpcore.data.tokens import TokenShards, write_shards
from interpcore.data.verbs import read_verbs
from interpcore.lens.lens import Lens, Moments
from interpcore.lens.published import load_lens, write_published
from interpcore.lre.operator import Operator
from interpcore.model.load.dictionaries import load_dictionaries
from interpcore.model.made_on import MadeOn
from interpcore.neurons.features import rule_features
from interpcore.neurons.published import read_published
from interpcore.runs import Ledger, Row, RunCard, read_card, write_json
from interpcore.steering import files as steering_files
from interpcore.steering.directions import Directions
from interpcore.steering.interventions import Intervention, Part


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        write: puts a good one into a folder and returns the file to damage.
        read: reads what lies in that folder, and asserts that it is whole.
        damage: what may happen to the file.
        count: how many times it does.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], None]
    damage: tuple[mutations.Mutation, ...]
    count: int = 60


def tokenizer() -> Any:
    return tf.AutoTokenizer.from_pretrained(model_folder("tiny"), local_files_only=True)


def write_relation(folder: Path) -> Path:
    facts = [("France", "Paris"), ("Peru", "Lima"), ("Spain", "Madrid"), ("Italy", "Rome")]
    content = {
        "name": "capital",
        "prompt_templates": ["The capital of {} is"],
        "prompt_templates_zs": ["{}:"],
        "properties": {
            "relation_type": "factual",
            "domain_name": "country",
            "range_name": "city",
            "symmetric": False,
        },
        "samples": [{"subject": s, "object": o} for s, o in facts],
        "range": [o for _, o in facts],
    }
    (folder / "capital.json").write_text(json.dumps(content))
    return folder / "capital.json"


def read_relation(path: Path) -> None:
    (relation,) = load_relations(path)
    texts = [relation.name, *(t for s in relation.samples for t in (s.subject, s.object))]
    assert all(isinstance(t, str) and t.strip() and t.encode() for t in texts)
    assert all(t.count("{}") == 1 for t in (*relation.prompt_templates, *relation.prompt_templates_zs))
    assert len(set(relation.samples)) == len(relation.samples) > 0 and isinstance(relation.symmetric, bool)


def write_operator(folder: Path) -> Path:
    made_on = MadeOn("abc", "def")
    Operator((None, 2), torch.randn(2, 4, 4), torch.randn(2, 4), made_on).save(folder / "o.safetensors")
    return folder / "o.safetensors"


def read_operator(path: Path) -> None:
    operator, _ = Operator.load(path)
    assert operator.weight.isfinite().all() and operator.bias.isfinite().all()
    assert all(d is None or (isinstance(d, int) and d >= 0) for d in operator.depths)
    assert operator.read(torch.ones(1, len(operator.depths), operator.bias.shape[1]), [1.0]).dim() == 4


def shard_kind(file: str, sealed: bool = True) -> Kind:
    def write(folder: Path) -> Path:
        draw = np.random.default_rng(0)
        shards = write_shards(
            folder / "t",
            draw.integers(0, 61, (20, 8)),
            61,
            subset=np.arange(20) % 2,
            subsets=("a", "b"),
            masks={"bos": [0], "newline": [5, 7]},
            shard_tokens=100,
        )
        if not sealed:
            manifest = {k: v for k, v in shards.manifest.items() if k not in ("sha256", "labels")}
            write_json(folder / "t" / "manifest.json", manifest)
        return folder / "t" / file

    return Kind(write, read_shards, mutations.JSON if file.endswith("json") else mutations.BYTES, 60)


def read_shards(path: Path) -> None:
    shards = TokenShards.open(path.parent)
    tokens = shards.sequences(0, shards.n_sequences)
    assert tuple(tokens.shape) == (shards.n_sequences, shards.context)
    assert tokens.min() >= 0 and tokens.max() <= shards.manifest["largest_id"] < shards.vocab_size
    assert shards.subset.max() < len(shards.subset_names) and len(shards.subset) == shards.n_sequences
    assert shards.mask(tokens).shape == tokens.shape


def model_kind(file: str) -> Kind:
    def write(folder: Path) -> Path:
        words = tokenizer()
        config = tf.GPT2Config(
            vocab_size=len(words),
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tf.GPT2LMHeadModel(config).save_pretrained(folder)
        words.save_pretrained(folder)
        return folder / file

    return Kind(
        write, read_model, mutations.SAFETENSORS if file.endswith("safetensors") else mutations.JSON, 25
    )


def read_model(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = interpcore.load(path.parent)
        ids = torch.tensor([[1, 2, 3]])
        logits = model.forward(ids).logits
    assert logits is not None and logits.shape == (1, 3, model.spec.vocab_size) and logits.isfinite().all()


def write_frame(folder: Path) -> Path:
    rows = [f"{layer},{neuron},{0.1 * neuron},{3 + layer}" for layer in range(2) for neuron in range(5)]
    (folder / "neurons.csv").write_text("\n".join(("layer,neuron,mean,kurt", *rows, "")))
    return folder / "neurons.csv"


def read_frame(path: Path) -> None:
    table = read_published(path)
    for name in ("layer", "neuron"):
        assert table[name].dtype.kind in "iu" and (table[name] >= 0).all()
    assert not table.duplicated(["layer", "neuron"]).any() and len(table)
    for name in ("mean", "kurt"):
        assert name not in table or (table[name].dtype.kind in "iuf" and not np.isinf(table[name]).any())


def write_features(folder: Path) -> Path:
    features = [
        {"name": "digit", "group": "number", "pattern": "^[0-9]+$", "on": "word"},
        {"name": "{} alone", "group": "alphabet", "pattern": "^{}$", "each": "a b c"},
        {"name": "days", "group": "topic", "words": "monday tuesday"},
    ]
    write_json(folder / "features.json", {"features": features})
    return folder / "features.json"


def read_features(path: Path) -> None:
    table = rule_features(["12", " a", " Monday", "x", ""], path)
    assert len(table.names) == len(table.groups) == len(table.has)
    assert all(isinstance(text, str) and text for text in (*table.names, *table.groups))


def write_card(folder: Path) -> Path:
    card = RunCard(
        model="m", weights="w", masks=("bos",), seeds={"study": 1}, arguments={"n": 3, "of": [1, 2]}
    )
    write_json(folder / "card.json", card.to_json())
    return folder / "card.json"


def read_run_card(path: Path) -> None:
    card = read_card(path.parent)
    assert isinstance(card.key, str) and all(isinstance(mask, str) for mask in card.masks)
    assert all(isinstance(getattr(card, n), dict) for n in ("seeds", "versions", "arguments"))


def write_verbs(folder: Path) -> Path:
    (folder / "verbs.csv").write_text("idx,sing,plur\n0,is,are\n1,has,have\n2,does,do\n")
    return folder / "verbs.csv"


def read_verb_list(path: Path) -> None:
    assert all(isinstance(word, str) and word for pair in read_verbs(path) for word in pair)


def write_ledger(folder: Path) -> Path:
    with Ledger(folder / "ledger.sqlite") as ledger:
        for i in range(20):
            ledger.record(Row(task="t", key=json.dumps({"i": i}), status="done", result={"value": i / 7}))
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return folder / "ledger.sqlite"


def read_ledger(path: Path) -> None:
    with Ledger(path) as ledger:
        for row in ledger:
            assert row.status in ("done", "failed") and isinstance(row.parameters, dict)


def write_lens(folder: Path) -> Path:
    half = Moments(2, torch.randn(3, 4, 4), torch.rand(3, 4, 4))
    about = {"target_depth": 2, "skip": 1, "length": 9, "made_on": MadeOn("abc", "def")}
    Lens.of((half, half), **about).save(folder / "lens.safetensors")
    return folder / "lens.safetensors"


def read_lens(path: Path) -> None:
    lens = Lens.load(path)
    assert lens.jacobian.isfinite().all() and (lens.standard_error >= 0).all() and lens.count == 4
    assert lens.carried(torch.ones(2, 4), lens.target_depth).shape == (2, 4)


def write_published_lens(folder: Path) -> Path:
    j = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    write_published(folder / "lens.pt", Lens(j, (1, 2, 3), 4, 7, made_on=MadeOn("a", "b")))
    return folder / "lens.pt"


def read_published_lens(path: Path) -> None:
    lens = load_lens(path)
    assert lens.jacobian.isfinite().all() and len(lens.depths) == len(lens.jacobian) and lens.count >= 0
    assert max(lens.depths) <= lens.target_depth


def write_directions(folder: Path) -> Path:
    vectors = {"resid": torch.eye(4, dtype=torch.float64)[:3]}
    made = Directions(
        vectors, {"resid": torch.ones(3, dtype=torch.float64)}, {}, MadeOn("w", "p"), {"method": "mean"}
    )
    made.save(folder / "directions.safetensors")
    return folder / "directions.safetensors"


def read_directions(path: Path) -> None:
    found = Directions.load(path)
    assert found.vectors["resid"].shape == (3, 4) and found.vectors["resid"].isfinite().all()


def write_intervention(folder: Path) -> Path:
    parts = (
        Part("resid", 1, "add", torch.ones(4)),
        Part("z", 0, "clamp", torch.ones(2), 3.0, "onward", (1,)),
    )
    steering_files.save(folder / "edit.safetensors", Intervention(parts, "edit", MadeOn("w", "p")))
    return folder / "edit.safetensors"


def read_intervention(path: Path) -> None:
    found = steering_files.read_own(path)
    assert [part.kind for part in found.parts] == ["add", "clamp"] and found.parts[0].vector is not None


def write_questions(folder: Path) -> Path:
    write_json(folder / "questions.json", [q.to_record() for q in generate(4)])
    return folder / "questions.json"


def read_question_list(path: Path) -> None:
    for question in read_questions(str(path)):
        assert question.question.strip() and question.right


def eval_log_kind(ending: str, damage: Any, count: int) -> Kind:
    """A log of two questions, one with options."""
    header = {"version": 2, "status": "success", "eval": {"task": "t", "model": "m"}, "plan": {}}
    both = {"epoch": 1, "metadata": {}, "scores": {}}
    rows = [
        both | {"id": "0", "input": "How many?", "target": ["7", "seven"]},
        both | {"id": "1", "input": "Which?", "choices": ["x", "y"], "target": "B"},
    ]

    def write(folder: Path) -> Path:
        write_eval_log(EvalLog(header, rows), folder / f"log{ending}")
        return folder / f"log{ending}"

    return Kind(write, read_question_list, damage, count)


def dictionary_kind(file: str, damage: Any, count: int) -> Kind:
    """Dictionaries of `tiny`: a SAELens folder's file, a Gemma Scope file, circuit-tracer's config."""

    def write(folder: Path) -> Path:
        made = dictionary_case.weights(128)
        if file == "params.npz":
            return dictionary_case.write_npz(folder / file, made)
        if file == "config.yaml":
            return dictionary_case.write_tracer(folder / "set", [made] * 2) / file
        return dictionary_case.write_saelens(folder / "sae", made, "topk", "blocks.2.hook_resid_pre") / file

    def read(path: Path) -> None:
        place = path if path.suffix == ".npz" else path.parent
        for found in load_dictionaries(place, tiny(), reads="resid.1" if path.suffix == ".npz" else None):
            assert found.encoder.isfinite().all() and found.encoder.shape == (128, dictionary_case.LATENTS)

    return Kind(write, read, damage, count)


@cache
def tiny() -> Any:
    return interpcore.load("tiny", check=False)


KINDS = {
    "dictionary, cfg": dictionary_kind("cfg.json", mutations.JSON, 60),
    "dictionary, weights": dictionary_kind("sae_weights.safetensors", mutations.SAFETENSORS, 30),
    "dictionary, npz": dictionary_kind("params.npz", mutations.BYTES, 30),
    "dictionary, config.yaml": dictionary_kind("config.yaml", mutations.BYTES, 60),
    "directions": Kind(write_directions, read_directions, mutations.SAFETENSORS),
    "intervention": Kind(write_intervention, read_intervention, mutations.SAFETENSORS),
    "questions": Kind(write_questions, read_question_list, mutations.JSON, 80),
    "evaluation log": eval_log_kind(".json", mutations.JSON, 60),
    "packed evaluation log": eval_log_kind(".eval", mutations.BYTES, 60),
    "relation": Kind(write_relation, read_relation, mutations.JSON, 120),
    "operator": Kind(write_operator, read_operator, mutations.SAFETENSORS),
    "lens": Kind(write_lens, read_lens, mutations.SAFETENSORS),
    "published lens": Kind(write_published_lens, read_published_lens, mutations.BYTES, 80),
    "manifest": shard_kind("manifest.json"),
    "older manifest": shard_kind("manifest.json", sealed=False),
    "shard": shard_kind("shard-00000.npy"),
    "labels": shard_kind("subsets.npy"),
    "config": model_kind("config.json"),
    "tokenizer": model_kind("tokenizer.json"),
    "weights": model_kind("model.safetensors"),
    "neuron table": Kind(write_frame, read_frame, mutations.TABLE, 80),
    "features": Kind(write_features, read_features, mutations.JSON, 80),
    "card": Kind(write_card, read_run_card, mutations.JSON, 80),
    "verbs": Kind(write_verbs, read_verb_list, mutations.TABLE, 40),
    "ledger": Kind(write_ledger, read_ledger, mutations.BYTES, 40),
}
