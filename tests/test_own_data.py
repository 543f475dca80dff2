"""Own data on the command line: circuit tasks from tables, answers of several tokens, tables of facts."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import interpcore
from interpcore.circuits.answers import PairsError
from interpcore.circuits.metrics import Metric
from interpcore.circuits.own import read_own
from interpcore.circuits.pairs import Pairs
from interpcore.cli import app
from interpcore.data.prompt_pairs import generate
from interpcore.data.relations import RelationError, load_relations
from interpcore.errors import Refused

TABLE = "clean{0}corrupted{0}answer{0}wrong\nThe old cat{0}The old dog{0}one|two{0} three\n"


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_is_read_whatever_wrote_it(tmp_path, delimiter, encoding):
    text = TABLE.replace("one|two", '"one|two"').format(delimiter).replace("\n", "\r\n")
    (tmp_path / "my.csv").write_bytes(text.encode(encoding))
    (task,) = read_own(tmp_path / "my.csv")
    assert task.name == "my" and task.texts == (("The old cat", "The old dog"),)
    assert task.good == ((" one", " two"),) and task.bad == ((" three",),)


def test_a_task_file_says_metric_and_ids(tmp_path):
    rows = [{"clean": "a", "corrupted": "b", "answer_idx": [5, 7], "wrong_idx": 9}]
    (tmp_path / "t.json").write_text(json.dumps({"name": "mine", "metric": "prob_diff", "pairs": rows}))
    (task,) = read_own(tmp_path)
    assert (task.name, task.metric, task.good, task.bad) == ("mine", "prob_diff", ((5, 7),), ((9,),))
    (tmp_path / "t.json").write_text(json.dumps({"metric": "prob_dif", "pairs": rows}))
    with pytest.raises(Refused, match=r"Did you mean prob_diff\?"):
        read_own(tmp_path)


def answers(tokenizer) -> tuple[list[tuple[str, str]], list[list[str]], list[list[str]]]:
    rows = generate("fact-retrieval-comma", tokenizer, 16, seed=1).rows
    texts = [(row["clean"], row["corrupted"]) for row in rows]
    name = lambda row, column: tokenizer.decode([row[column]])  # noqa: E731
    good = [[f"{name(row, 'country_idx')} and the river"] for row in rows]
    bad = [[f"{name(row, 'corrupted_country_idx')} and"] for row in rows]
    bad[0] = [f"{name(rows[0], 'country_idx')} or"]  # begins like the right one
    return texts, good, bad


def test_answers_of_several_tokens_are_measured_by_their_log_probability(tiny):
    texts, good, bad = answers(tiny.tokenizer)
    pairs = Pairs.sequences("mine", texts, good, bad, tiny.tokenizer)

    def log_probability(prompt: str, answer: str) -> float:
        before, ids = (tiny.encode(text)[0][0].tolist() for text in (prompt, prompt + answer))
        logits = tiny.forward(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(logits[at - 1, ids[at]]) for at in range(len(before), len(ids)))

    for side, prompts in ((0, pairs.clean), (1, pairs.corrupted)):
        logits = tiny.forward(prompts, attention_mask=pairs.mask.long(), logits_at="last").logits
        found = pairs.by_pair(Metric("logprob_diff")(logits, pairs).double())
        wanted = [
            log_probability(text[side], right[0]) - log_probability(text[side], wrong[0])
            for text, right, wrong in zip(texts, good, bad, strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(wanted).double(), atol=1e-4, rtol=1e-4)
    assert int(pairs.pair.unique().numel()) == len(texts) < len(pairs)
    halves = pairs.split(0.5, 3)
    assert not set(halves[0].pair.tolist()) & set(halves[1].pair.tolist())
    with pytest.raises(Refused, match="reads one"):
        Metric("prob_diff")(torch.zeros(len(pairs), 9999), pairs)
    with pytest.raises(PairsError, match="2 right"):
        Pairs.sequences("mine", texts[:1], [[*good[0], " x"]], bad[:1], tiny.tokenizer)


def test_a_task_of_ones_own_goes_from_a_table_to_a_faithful_circuit_and_its_page(tmp_path, tiny):
    texts, good, bad = answers(tiny.tokenizer)
    rows = [
        {"clean": clean, "corrupted": corrupted, "answer": right[0].strip(), "wrong": wrong[0].strip()}
        for (clean, corrupted), right, wrong in zip(texts, good, bad, strict=True)
    ]
    (tmp_path / "rivers.json").write_text(json.dumps(rows))
    out = tmp_path / "run"
    sizes = ("--size", "5%", "--size", "100%")
    command = ["circuits", "pareto", "--pairs", str(tmp_path / "rivers.json"), "--method", "eap"]
    done = CliRunner().invoke(
        app, [*command, *sizes, "--random", "0", "--quiet", "--json", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    (row,) = found["table"]
    assert (row["task"], row["metric"], row["held_out"]) == ("rivers", "logprob_diff", 8)
    assert row["reached"] == "yes" and found["files"]
    (tmp_path / "rivers.json").write_text(json.dumps(rows[:9]))
    again = CliRunner().invoke(app, [*command, *sizes, "--random", "0", "--quiet", "--out", str(out)])
    assert again.exit_code == 1 and "pairs of rivers" in str(again.exception)


def test_relations_of_a_table_are_those_of_json(tmp_path):
    head, facts = "relation;subject;object;template\n", (("a", "b"), ("c", "d"), ("a", "b"))
    lines = "".join(f"{kind};{s};{o};The {kind} of {{}} is\n" for kind in ("one", "two") for s, o in facts)
    (tmp_path / "facts.csv").write_text(head + lines, encoding="utf-8-sig")
    found = load_relations(tmp_path / "facts.csv")
    assert [relation.name for relation in found] == ["one", "two"] and len(found[0].samples) == 2
    assert found[1].prompt_templates == ("The two of {} is",) and load_relations(tmp_path) == found
    (tmp_path / "facts.csv").write_text("subject,object,tmplate\na,b,c {}\n")
    with pytest.raises(RelationError, match=r"no column template, such as 'The capital of \{\} is'"):
        load_relations(tmp_path)
