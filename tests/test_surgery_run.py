"""Plans on tasks: losses by hand, boundaries, the published slip, controls, and the command."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.data.tasks import Example, Task, make_task
from interpcore.errors import Refused
from interpcore.model import Plan
from interpcore.surgery.experiments import COMPARE, RUN, TASKS
from interpcore.surgery.items import read_items, shuffled
from interpcore.surgery.measure import measure_items
from interpcore.surgery.options import Compare, Items, Options, Run


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny", check=False)


def by_hand(model, plan, tokens, start):
    """Sum of -log p over the tokens from `start`, one forward of one text in float64."""
    logits = model.with_plan(plan).forward(torch.tensor([tokens])).logits[0].double()
    scores = logits.log_softmax(-1)
    return -sum(float(scores[i - 1, tokens[i]]) for i in range(start, len(tokens)))


def test_an_answers_loss_is_the_sum_over_its_tokens_whatever_runs_beside_it(tiny):
    tasks = [make_task(name, 5) for name in ("facts", "sums-3", "definitions")]
    plans = [Plan.parse(t, tiny.plan) for t in ("intact", "skip 1", "repeat 2 x3", "none", "parallel 1-2")]
    for task in tasks:
        items = read_items(tiny, task)
        found = measure_items(tiny, items, plans)
        small = measure_items(tiny, items, plans, tokens_at_once=1)
        for plan, values, alone in zip(plans, found, small, strict=True):
            for i, item in enumerate(items):
                [row] = item.rows
                want = by_hand(tiny, plan, row.tokens, row.start)
                assert values["loss"][i] == pytest.approx(want, rel=2e-5, abs=2e-6)
                assert alone["loss"][i] == pytest.approx(values["loss"][i], rel=2e-5, abs=2e-6)
            assert values["exact"] == alone["exact"] and values["rank"] == alone["rank"]
        assert max(found[0]["kl"]) < 1e-6 and min(found[0]["agreement"]) == 1 and min(found[1]["kl"]) > 0


def test_where_answers_begin(tiny):
    """After a space that belongs to the answer, after a quote without one, and inside a token."""

    def rows(prompt, answer, join="space"):
        [item] = read_items(tiny, Task("t", "", (Example(prompt, answer),), join))
        return item.rows[0], [tiny.tokenizer.decode([t]) for t in item.rows[0].tokens]

    row, texts = rows("The capital city of France is", "Paris")
    assert "".join(texts[row.start :]) == " Paris" and not row.boundary
    row, texts = rows('He said "', "Paris")
    assert "".join(texts[1:]) == 'He said "Paris' and "".join(texts[row.start :]) == "Paris"
    row, texts = rows("The capital city of France is Par", "is", "none")
    assert row.boundary and texts[row.start] == " Paris" and row.start == len(texts) - 1
    with pytest.raises(Refused, match="needs a prompt and an answer"):
        Example("a", " ")


def test_the_published_loss_is_that_of_the_last_token_behind_a_second_bos(tiny):
    task = Task("t", "", (Example("The capital city of", "France is Paris."),))
    [ours], [theirs] = read_items(tiny, task), read_items(tiny, task, "paper")
    bos = tiny.tokenizer.bos_token_id
    assert theirs.rows[0].tokens.count(bos) == 2 and ours.rows[0].tokens.count(bos) == 1
    assert tiny.tokenizer.decode([theirs.rows[0].tokens[theirs.rows[0].start]]) == "."
    for item in (ours, theirs):
        [found] = measure_items(tiny, [item], [tiny.plan])
        row = item.rows[0]
        assert found["loss"][0] == pytest.approx(by_hand(tiny, tiny.plan, row.tokens, row.start), rel=1e-4)
    [good], [slip] = (measure_items(tiny, [i], [tiny.plan]) for i in (ours, theirs))
    assert slip["loss"][0] < good["loss"][0] / 2  # a full stop is easily said


def test_any_of_several_answers_counts(tiny):
    example = Example("The capital city of France is", "Rome", ("Rome", "Paris", "Oslo"))
    [item] = read_items(tiny, Task("t", "", (example,), scorer="any_of"))
    [found] = measure_items(tiny, [item], [tiny.plan])
    losses = [by_hand(tiny, tiny.plan, row.tokens, row.start) for row in item.rows]
    want = -torch.logsumexp(-torch.tensor(losses).double(), 0)
    assert found["loss"][0] == pytest.approx(float(want), abs=1e-5) and found["exact"] == [1.0]
    assert found["rank"] == [1.0] and len(item.rows) == 3


def test_controls_take_another_items_answer():
    task = make_task("rhymes", 20)
    control = shuffled(task)
    assert [e.id for e in control.examples] == [e.id for e in task.examples]
    assert not any({*a.answers} & {*b.answers} for a, b in zip(task.examples, control.examples, strict=True))
    with pytest.raises(Refused, match="alike"):
        shuffled(Task("t", "", (Example("a", "b"), Example("c", "b"))))


def test_a_study_goes_on_and_measures_items_beside_the_intact_plan(tiny, tmp_path):
    options = Options()
    asked = Run(task=("facts", "years"), plan=("skip 3", "0-2", "random 2"), n=6, draws=3)
    with RUN.open(tiny, tmp_path / "s", options) as study:
        report = RUN.run(study, asked)
        rows = len(study.folder.ledger)
        again = RUN.run(study, asked)
        assert len(study.folder.ledger) == rows
        pd.testing.assert_frame_equal(report.table, again.table)
        done = TASKS.run(study, Items(task=("facts", "years"), n=6)).table.set_index("task").done
        difference = COMPARE.run(study, Compare(task=("facts",), n=6, plan_a="skip 3", plan_b="skip 3"))
    table = report.table.set_index(["task", "plan"])
    assert set(table.index.get_level_values("plan")) == {"intact", "skip 3", "0-2", "random 2"}
    skip, listed = table.loc[("facts", "skip 3")], table.loc[("facts", "0-2")]
    assert skip.loss == listed.loss and skip.n == 6 and table.loc[("facts", "intact")].loss_change == 0
    assert skip.loss - table.loc[("facts", "intact")].loss == pytest.approx(skip.loss_change, abs=1e-6)
    items = pd.read_parquet(tmp_path / "s/artifacts/tables/items.parquet")
    mine = items[(items.task == "facts") & (items.plan == "0-2")]
    assert len(mine) == 6 and mine.loss.mean() == pytest.approx(skip.loss)
    assert done.facts and not done.years and "Not done by the intact model: years" in report.notes[0]
    assert (difference.table.a_minus_b == 0).all()


def test_continuations_are_measured_by_rules(tiny, tmp_path):
    asked = Run(task=("facts",), plan=("reverse 0-3",), n=4, new_tokens=5)
    with RUN.open(tiny, tmp_path / "s", Options()) as study:
        table = RUN.run(study, asked).table.set_index("plan")
    intact, reverse = table.loc["intact"], table.loc["reverse 0-3"]
    assert intact.text_exact == 1 and reverse.text_exact == 0 and intact.parses == 0
    assert intact.agreement_tokens == 5 > reverse.agreement_tokens
    assert intact.surprise < 2 < reverse.surprise and intact.repetition < reverse.repetition


def test_the_command_and_what_it_refuses(tmp_path):
    def call(*words):
        return CliRunner().invoke(app, ["surgery", "run", "--out", str(tmp_path / "o"), "--quiet", *words])

    found = call("--plan", "0-2, 1 x5, 3", "--task", "facts", "--n", "3")
    assert found.exit_code == 0, found.output
    assert "0-2, 1 x5, 3" in found.stdout
    for words, sentence in (
        (("--plan", "skip 9"), "no block call 9"),
        (("--task", "facts", "--plan", "0-9"), "no block 4"),
        (("--task", "nothing"), "no task 'nothing'"),
        (("--tasks", str(tmp_path / "missing.json")), "missing.json"),
    ):
        found = call(*words)
        assert found.exit_code and isinstance(found.exception, Exception) and sentence in str(found.exception)
    for verb, words, sentence in (
        ("patch", ("--task", "nothing"), "There is no task 'nothing'"),
        ("patch", ("--task", "years", "--n", "1", "--site", "resid", "--by", "head"), "of site z"),
        ("trace", ("--answer", " "), "needs a subject"),
        ("trace", ("--subject", "Spain"), "is not in the prompt"),
        ("stand-in", ("--span", "4"), "no range"),
        ("map", ("--task", "facts", "--n", "1", "--kind", "ranges-skip"), "take more. The rest"),
    ):
        words = ["surgery", verb, "--out", str(tmp_path / "o"), "--quiet", *words]
        found = CliRunner().invoke(app, words)
        assert found.exit_code and str(found.exception).startswith(
            (sentence, "facts", "Sing", "The", "Tra", "Bl")
        )
        assert sentence in str(found.exception) and "line" not in str(found.exception)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([{"name": "t", "description": "", "examples": [], "scorer": "best"}]))
    assert "scorer is one of" in str(call("--tasks", str(bad)).exception)
