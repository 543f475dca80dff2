"""Planted models: their truth by exhaustion, and what policies find of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from agent_case import Made
from agent_server import Step, calls, results, serving

from interpcore.agent.bench import BenchOptions, bench
from interpcore.agent.claims import Claim
from interpcore.agent.instrument import listed
from interpcore.agent.options import SessionOptions
from interpcore.agent.planted import BLOCKS, KINDS, NULL, plant
from interpcore.agent.report import claim_rows
from interpcore.agent.session import in_memory
from interpcore.cli.agent import KINDS as SHOWN
from interpcore.cli.agent_instrument import PlansOnTasks, instrument_of
from interpcore.errors import Refused, RunError

ORDERS = [list(kept) for k in range(BLOCKS + 1) for kept in combinations(range(BLOCKS), k)]
for i, j in combinations(range(BLOCKS), 2):
    order = list(range(BLOCKS))
    order[i], order[j] = j, i
    ORDERS.append(order)


def truth_holds(kind: str, seed: int, orders: list[list[int]]) -> None:
    planted = plant(kind, seed)
    instrument = PlansOnTasks(planted.model, planted.tasks)
    for task in planted.tasks:
        words = {example.prompt.split()[-1]: example.id for example in task.examples}
        items = list(words.values())  # nothing but the last word is read
        intact = instrument.measure(listed(range(BLOCKS)), task.name, items)
        loss = np.array(intact["loss"])
        assert loss.max() < 0.01 and min(intact["control_loss"]) > 5
        for order in orders:
            rise = np.array(instrument.measure(listed(order), task.name, items)["loss"]) - loss
            if planted.works(task.name, order):
                assert np.abs(rise).max() < 0.02, (order, rise)
            else:
                assert rise.min() > 2, (order, rise)


@pytest.mark.parametrize("kind", ["redundant", "conjunction", "order"])
def test_what_is_planted_is_so(kind):
    singles = [order for order in ORDERS if len(order) == BLOCKS - 1]
    truth_holds(kind, 3, [*singles, *ORDERS[-15::2]])


@pytest.mark.slow  # 4 minutes
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != NULL])
def test_what_is_planted_is_so_under_every_plan(kind):
    for seed in range(2):
        truth_holds(kind, seed, ORDERS)


def test_models_of_one_kind_differ_in_all_that_is_drawn():
    one, same, other = (plant("single", seed) for seed in (0, 0, 1))
    assert one.tasks == same.tasks != other.tasks and SHOWN == KINDS
    assert {p.tasks[0].name for p in (one, other)} != {"amber"}
    with pytest.raises(Refused, match="planted kind"):
        plant("nothing", 0)


def test_truth_and_facts_of_a_conjunction():
    planted = plant("conjunction", 0)
    name = planted.tasks[0].name
    matter = [fact[1] for fact in planted.facts("matters")]
    assert len(matter) == 2 and planted.facts("interacts") == [(name, *matter)]
    claims = {
        kind: Claim(type=kind, task=name, runs=("r",), blocks=tuple(matter))
        for kind in ("needs", "interacts")
    }
    assert all(planted.holds(claim) for claim in claims.values())
    assert not planted.holds(Claim(type="needs", task=name, runs=("r",), blocks=tuple(range(BLOCKS))))


def test_greedy_delete_and_bisect_are_right_and_miss_nothing():
    options = BenchOptions(policies=("greedy-delete", "bisect"), kinds=("redundant",), models=1)
    table = bench(instrument_of, options).table
    assert (table.precision == 1).all() and (table.recall == 1).all() and (table.false == 0).all()
    assert (table.claims > 0).all() and (table.forwards > 0).all() and (table.recall_low < 1).all()


def test_a_language_model_is_scored_on_planted_models(tmp_path, monkeypatch):
    """A scripted server that skips every block, and claims of each what it saw; no call is paid twice."""

    def answer(request):
        said = results(request)
        if not said:
            return calls(("list_tasks", {}))
        task = said[0]["tasks"][0]["task"]
        runs = [each for each in said if "metrics" in each]
        if not runs:
            plans = [listed([b for b in range(BLOCKS) if b != k]) for k in range(BLOCKS)]
            return calls(*(("run", {"plan": plan, "task": task}) for plan in plans))
        if any("claim" in each.get("ids", {}) for each in said):
            return calls(("finish", {"summary": "As claimed."}))
        asked = []
        for block, run in enumerate(runs):
            kind = "matters" if run["metrics"]["loss"]["low"] > 0.5 else "does_not_matter"
            asked.append({"type": kind, "task": task, "blocks": [block], "runs": [run["ids"]["run"]]})
        return calls(*(("claim", each) for each in asked))

    options = BenchOptions(policies=("llm",), kinds=("single",), models=1, llm="stub")
    with serving(Step(answer)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base)
        table = bench(instrument_of, options, tmp_path / "b").table
        again = bench(instrument_of, options, tmp_path / "b").table
        assert len(server.requests) == 4
        with pytest.raises(RunError, match="does not mean the same"):  # another model's answers are not its
            bench(instrument_of, replace(options, llm="other"), tmp_path / "b")
    row = table[table.kind == "single"].iloc[0]
    assert (row.claims, row.confirmed, row.false, row.precision) == (BLOCKS, BLOCKS, 0, 1)
    assert 0 < row.recall < 1 and row.tokens == 4 * 120  # it looks for no set and no prefix
    assert again.equals(table)


@pytest.mark.slow  # 5 minutes
def test_the_bench_of_offline_policies(tmp_path):
    table = bench(instrument_of, BenchOptions(), tmp_path / "b", workers=2).table
    assert (table.false == 0).all()
    assert (table[table.kind == NULL].claims == 0).all()
    exact = table[table.policy.isin(("greedy-delete", "bisect", "grid")) & (table.kind != NULL)]
    assert (exact.precision == 1).all() and (exact.recall == 1).all() and (exact.models >= 20).all()
    assert table[(table.policy == "guess") & (table.kind == "all")].stated_precision.item() < 0.7


@pytest.mark.slow  # 2 minutes
def test_nothing_is_confirmed_of_a_hundred_untrained_models():
    options = BenchOptions(policies=("grid", "greedy-delete"), kinds=(NULL,), models=100)
    assert bench(instrument_of, options).table.confirmed.sum() == 0


def claims_everything(view_blocks: int):
    """Answers that claim of every block that it matters and that it does not, whatever the runs say."""
    import json

    def answer(transcript):
        said = [json.loads(m["content"]) for m in transcript if m["role"] == "tool"]
        if not said:
            plans = [listed([b for b in range(view_blocks) if b != k]) for k in range(view_blocks)]
            asked = [("run", {"plan": plan, "task": "alpha"}) for plan in plans]
        elif len(said) == view_blocks:
            runs = [each["ids"]["run"] for each in said]
            asked = [
                ("claim", {"type": kind, "task": "alpha", "runs": runs, "blocks": [b]})
                for b in range(view_blocks)
                for kind in ("matters", "does_not_matter")
            ]
        else:
            asked = [("finish", {"summary": "all"})]
        calls = [{"function": {"name": name, "arguments": json.dumps(a)}} for name, a in asked]
        return {"choices": [{"message": {"content": None, "tool_calls": calls}}]}

    return answer


@pytest.mark.parametrize(
    ("rise", "seeds"),
    [(0.5, 12), *(pytest.param(rise, 100, marks=pytest.mark.slow) for rise in (0.5, 0.25))],  # 2 minutes
)
def test_claims_that_are_just_false_are_confirmed_no_more_often_than_the_level_says(rise, seeds):
    """Sessions in which every skip is at the very bound: "matters" is false by nothing at 0.5 (and "does not
    matter" by far), "does not matter" by nothing at 0.25."""
    supported = confirmed = 0
    for seed in range(seeds):
        skipped = lambda task, blocks: rise if len(blocks) < 4 else 0.0  # noqa: E731
        made = Made(skipped, noise=0.2, identity={"seed": seed})
        with in_memory(made, SessionOptions(seed=seed, level=0.05)) as session:
            answer = claims_everything(4)
            session.answers.policy.answer = answer
            session.run()
            verdicts = [row["verdict"] for row in claim_rows(session.ledger)]
        supported += any(v in ("confirmed", "not confirmed") for v in verdicts)
        confirmed += "confirmed" in verdicts
    assert supported >= seeds / 12  # in sample, chance finds something in many sessions
    assert confirmed <= 0.05 * seeds
