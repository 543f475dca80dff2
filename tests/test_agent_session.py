"""Sessions on an instrument whose effects are known: what is claimed, what is refused, what may be spent."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from agent_case import CARD, Made, finished, only, session, tables, task

from interpcore.agent.answers import FromRecord
from interpcore.agent.claims import Claim, decide, holm
from interpcore.agent.instrument import draw, halves, listed, without
from interpcore.agent.options import OFFLINE, Budget, SessionOptions
from interpcore.agent.policies import POLICIES
from interpcore.agent.report import count, markdown
from interpcore.errors import Refused
from interpcore.runs import RunError
from interpcore.stats import PairedMean, mean_over_clusters


class Scripted:
    """A policy that says what a test gives it."""

    source = "policy"

    def __init__(self, opened, *asked):
        self.asked = list(asked)
        opened.answers.policy = self

    def answer(self, transcript):
        name, arguments = self.asked.pop(0) if self.asked else ("finish", {"summary": "none"})
        if callable(arguments):
            arguments = arguments([json.loads(m["content"]) for m in transcript if m["role"] == "tool"])
        call = {"function": {"name": name, "arguments": json.dumps(arguments)}}
        return {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}


def scripted(tmp_path, instrument, *asked, **options):
    """Run a script; gives what the tools answered, and the counts."""
    with session(tmp_path / "s", instrument, **options) as opened:
        Scripted(opened, *asked)
        opened.run()
        said = [json.loads(m["content"]) for m in opened.ledger.messages() if m["role"] == "tool"]
        return said, count(opened.ledger)


def run(plan, n=24, seed=0, name="alpha"):
    return "run", {"plan": plan, "task": name, "n": n, "seed": seed}


def claim(kind, **about):
    def cite(results):
        ids = [r["ids"]["run"] for r in results if "run" in r.get("ids", {})]
        return {"type": kind, "task": "alpha", "runs": ids, **about}

    return "claim", cite


def says(rows):
    return {row["says"]: row["verdict"] for row in rows}


def test_greedy_delete_and_bisect_find_what_is_there(tmp_path):
    _, rows = finished(tmp_path / "a", Made(only(1, 3), noise=0.1))
    wanted = {f"block {b} matters for alpha": "confirmed" for b in (1, 3)}
    wanted |= {f"block {b} does not matter for alpha": "confirmed" for b in (0, 2)}
    assert says(rows) == wanted | {"alpha needs blocks 1, 3 and no others": "confirmed"}
    _, rows = finished(tmp_path / "b", Made(only(1, 2), noise=0.1), "bisect")
    assert says(rows) == {"alpha appears with the first 3 blocks": "confirmed"}


@pytest.mark.parametrize("policy", OFFLINE)
def test_no_policy_confirms_what_is_not_so(tmp_path, policy):
    """Blocks 0 and 2 stand in for one another; block 3 is needed."""
    rise = lambda task, blocks: 0.0 if 3 in blocks and {0, 2} & set(blocks) else 5.0  # noqa: E731
    _, rows = finished(tmp_path / "s", Made(rise, noise=0.1), policy)
    true = {f"block {b} does not matter for alpha" for b in (0, 1, 2)}
    true |= {"block 3 matters for alpha", "alpha appears with the first 4 blocks"}
    true |= {f"alpha needs blocks {b}, 3 and no others" for b in (0, 2)}
    true |= {"blocks 0, 2 interact on alpha"}
    confirmed = {row["says"] for row in rows if row["verdict"] == "confirmed"}
    assert confirmed <= true and (confirmed or policy == "guess")
    assert set(POLICIES) == set(OFFLINE)


def test_every_number_of_the_report_has_its_runs(tmp_path):
    report, rows = finished(tmp_path / "s", Made(only(1, 3)))
    text = (tmp_path / "s/artifacts/report.md").read_text()
    named = {run for row in rows for run in (row["found_runs"] + " " + row["runs"]).split()}
    assert all(f"| {run} |" in text for run in named) and len(named) > 8
    assert report.files[1].read_text().count("<table>") == 2 and all(row["runs"] for row in rows)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((claim("matters", blocks=[1]),), "stands on runs"),
        ((run("0, 2-3", n=19), claim("matters", blocks=[1])), "too few items"),
        ((run("0, 2-3"), claim("matters", blocks=[2])), "these plans on the same items: 0-1, 3"),
        (
            (run("0, 2-3"), run("0-1, 3", seed=1), run("0, 3"), claim("interacts", blocks=[1, 2])),
            "same items",
        ),
        ((run("0, 2-3"), claim("matters", blocks=[7])), "blocks 0 to 3"),
        ((run("0, 2-3"), claim("matters", blocks=[1, 2])), "about 1"),
        ((run("0, 2-3"), claim("appears_at")), "n is needed"),
        ((run("0, 2-3"), claim("matters", blocks=[1], least=9)), "no option"),
        ((("claim", {"type": "matters", "task": "alpha", "blocks": [1], "runs": ["r0"]}),), "no run of this"),
        ((run("0, 2-3"), claim("matters", blocks=[1]), claim("matters", blocks=[1])), "claim c1 again"),
        ((run("0-3", name="beta"),), "no task 'beta'"),
        ((run("0, x"),), "plan is '0, x'"),
        ((("run", {"task": "alpha"}),), "plan is needed"),
        ((("finish", {"summary": "It is.", "claims": ["c9"]}),), "no claim of this session"),
    ],
)
def test_what_the_harness_does_not_take(tmp_path, asked, says):
    said, counts = scripted(tmp_path, Made(only(1, 3)), *asked)
    refused = [result["error"]["message"] for result in said if "error" in result]
    assert len(refused) == 1 and says in refused[0]
    assert counts.invalid == 1 and counts.refused == (asked[-1][0] == "claim")


def test_a_task_that_the_intact_model_does_not_do_carries_no_claim(tmp_path):
    said, counts = scripted(tmp_path, Made(only(1), gap=0.1), run("0, 2-3"), claim("matters", blocks=[1]))
    assert "not done by the intact model" in said[1]["error"]["message"] and counts.claims == 0
    _, rows = finished(tmp_path / "b", Made(only(1), gap=0.1))
    assert rows == []


def test_a_task_with_few_items_is_explored_but_carries_no_claim(tmp_path):
    small = Made(only(1), tasks={"alpha": task("alpha", 41)})
    said, _ = scripted(tmp_path, small, run("0, 2-3", n=21), claim("matters", blocks=[1]))
    assert "n" in said[0] and said[0]["n"] == 21 and "verdict" in said[1]
    small = Made(only(1), tasks={"alpha": task("alpha", 39)})
    said, _ = scripted(tmp_path / "b", small, run("0, 2-3", n=24), claim("matters", blocks=[1]))
    assert said[0]["n"] == 20 and "keeps back too few" in said[1]["error"]["message"]


@pytest.mark.parametrize(("number", "taken"), [("5.0", True), ("5.00", True), ("4.9", False), ("0.5", True)])
def test_a_number_in_a_note_is_one_of_the_runs(tmp_path, number, taken):
    def note(results):
        ids = [results[0]["ids"]["run"]]
        said = {"hypothesis": "h", "statement": f"It rises by {number} nats.", "verdict": "open"}
        return {**said, "runs": ids}

    said, _ = scripted(tmp_path, Made(only(1)), run("0, 2-3"), ("note", note))
    assert ("error" not in said[1]) == taken


def test_explored_and_confirming_items_never_meet(tmp_path):
    made = Made(only(1, 3), noise=0.2)
    finished(tmp_path / "s", made)
    explore, kept = map(set, halves(made.tasks["alpha"]))
    seen = [set(items) for *_, items in made.measured]
    assert explore.isdisjoint(kept) and len(explore | kept) == 80
    assert all(items <= explore or items <= kept for items in seen) and any(items <= kept for items in seen)
    assert draw(sorted(explore), 24, 3) == draw(sorted(explore), 30, 3)[:24] != draw(sorted(explore), 24, 4)


def test_the_same_run_is_a_lookup(tmp_path):
    made = Made(only(1))
    said, _ = scripted(
        tmp_path, made, run("0, 2-3"), run("0,2,3"), ("list_tasks", {}), ("query", {"limit": 1})
    )
    assert len(made.measured) == 2 and said[0]["ids"] == said[1]["ids"]
    assert said[3]["left_out"] == 1 and said[2]["tasks"][0]["done"]


@pytest.mark.parametrize("forwards", [100, 2000, 2500, 4000, 6000, 9000])
def test_forwards_are_never_overshot_and_confirming_is_paid_for(tmp_path, forwards):
    made = Made(only(1, 3))
    with session(tmp_path / "s", made, budget=(f"forwards={forwards}",)) as opened:
        opened.run()
        spent = opened.ledger.spent().forwards
        verdicts = [
            row["confirmed"] for row in opened.ledger.rows("SELECT * FROM claims WHERE verdict = 'supported'")
        ]
    assert spent == sum(made.forwards(*each) for each in made.measured) <= forwards
    assert all("no time" not in verdict and json.loads(verdict)["n"] == 40 for verdict in verdicts)
    assert opened.options.limits.forwards == forwards


@pytest.mark.parametrize(
    ("policy", "limits"),
    [("grid", (2500, 6000)), ("greedy-delete", (2500, 4000)), ("halving", (3000, 5000)), ("random", (2500,))],
)
def test_what_is_explored_can_still_be_confirmed(tmp_path, policy, limits):
    """Exploring everything would take all that these budgets have, and leave nothing to confirm it with."""
    confirmed = [0]
    for forwards in limits:
        with session(
            tmp_path / str(forwards), Made(only(1, 3), noise=0.1), policy, budget=(f"forwards={forwards}",)
        ) as opened:
            opened.run()
            found, spent = count(opened.ledger), opened.ledger.spent().forwards
        assert spent <= forwards and found.refused == 0
        confirmed.append(found.confirmed)
    assert all(more > less for less, more in pairwise(confirmed))


def test_a_run_that_could_not_be_confirmed_is_refused_with_what_it_would_take(tmp_path):
    """24 items take 480 + 360 forwards here, 40 kept back 800 + 600."""
    for forwards, kind in ((2240, None), (2239, "budget")):
        said, _ = scripted(tmp_path / kind if kind else tmp_path, Made(only(1)), run("0, 2-3"),
                           budget=(f"forwards={forwards}",))  # fmt: skip
        assert said[0].get("error", {}).get("type") == kind
    assert "may take 2240 forwards; of 2239, 2239 are left" in said[0]["error"]["message"]


def test_a_limit_of_time_ends_a_session(tmp_path):
    made = Made(only(1, 3))
    with session(tmp_path / "s", made, budget=("seconds=100",)) as opened:
        opened.clock = lambda step: float(step) if step < 9 else 101.0  # a few runs, then it is over
        opened.run()
        said = [json.loads(m["content"]) for m in opened.ledger.messages() if m["role"] == "tool"]
    errors = [each["error"]["type"] for each in said if "error" in each]
    assert errors and set(errors) == {"budget"}
    assert 1 < len(made.measured) <= 5


def test_two_sessions_in_one_folder_are_refused(tmp_path):
    with session(tmp_path / "s", Made(only(1))) as opened:
        with pytest.raises(RunError, match="in use"):
            session(tmp_path / "s", Made(only(1)))
        opened.run()
    with pytest.raises(RunError, match="does not mean the same"):
        session(tmp_path / "s", Made(only(1)), goal="Something else.")
    with pytest.raises(RunError, match="does not mean the same"):
        session(tmp_path / "s", Made(only(1)), budget=("forwards=5",))
    with pytest.raises(RunError, match="does not mean the same"):
        session(tmp_path / "s", Made(only(1), tasks={"alpha": task("alpha", 60)}))


@pytest.mark.parametrize("policy", ["grid", "random"])
def test_the_same_session_is_the_same_again_and_replays(tmp_path, policy):
    ledgers = []
    for name in ("a", "b"):
        with session(tmp_path / name, Made(only(1, 3), noise=0.3), policy) as opened:
            opened.run()
            ledgers.append(tables(opened.ledger))
    assert ledgers[0] == ledgers[1]
    record = session(tmp_path / "a", Made(only(1, 3), noise=0.3), policy)
    again = session(tmp_path / "c", Made(only(1, 3), noise=0.3), policy, replay=record.ledger)
    with record, again:
        assert isinstance(again.answers, FromRecord)
        again.run()
        assert tables(again.ledger) == ledgers[0]
        assert markdown(again.ledger) == markdown(record.ledger)


def test_a_finished_session_is_only_reported_again(tmp_path):
    report, _ = finished(tmp_path / "s", Made(only(1)))
    before = report.files[0].read_bytes()
    made = Made(only(1))
    again, _ = finished(tmp_path / "s", made)
    assert made.measured == [] and again.files[0].read_bytes() == before


def test_budgets_are_read_or_refused():
    assert Budget.read(("forwards=2e6", "money=1.5")) == Budget(forwards=2_000_000, money=1.5)
    for wrong in ("forwards", "forwards=x", "calls=0", "calls=1.5", "time=5", "money=-1", "money=nan"):
        with pytest.raises(Refused):
            Budget.read((wrong,))
    with pytest.raises(Refused, match="once"):
        Budget.read(("calls=1", "calls=2"))
    with pytest.raises(Refused, match="within"):
        SessionOptions(within=0.5, least=0.5)


def test_plans_are_listed_as_ranges():
    assert listed([0, 1, 2, 4, 3, 3]) == "0-2, 4, 3, 3" and listed([]) == "none"
    assert without(5, 2) == "0-1, 3-4" and CARD.model == "made"


def about(kind, **what):
    return Claim(type=kind, task="alpha", runs=("r",), **what)


@pytest.mark.parametrize(
    ("claim", "means", "verdict"),
    [
        (about("matters", blocks=(0,)), [2.0], "supported"),
        (about("matters", blocks=(0,)), [0.3], "refuted"),
        (about("matters", blocks=(0,)), [0.5], "undecided"),
        (about("does_not_matter", blocks=(0,)), [0.05], "supported"),
        (about("does_not_matter", blocks=(0,)), [-1.0], "refuted"),
        (about("does_not_matter", blocks=(0,)), [0.25], "undecided"),
        (about("needs", blocks=(0, 1)), [0.0, 2.0, 2.0], "supported"),
        (about("needs", blocks=(0, 1)), [0.0, 2.0, 0.0], "refuted"),
        (about("needs", blocks=(0, 1)), [2.0, 2.0, 2.0], "refuted"),
        (about("appears_at", n=2), [-3.0, 2.0], "supported"),
        (about("appears_at", n=2), [0.0, 0.0], "refuted"),
        (about("interacts", blocks=(0, 1)), [1.0, 1.0, 4.0], "supported"),
        (about("interacts", blocks=(0, 1)), [1.0, 1.0, 0.0], "supported"),
        (about("interacts", blocks=(0, 1)), [1.0, 1.0, 2.1], "refuted"),
        (about("order", plans=("0", "1")), [1.0, 0.5], "supported"),
        (about("order", plans=("0", "1")), [0.5, 1.0], "refuted"),
    ],
)
def test_claims_are_decided_by_what_they_say(claim, means, verdict):
    noise = np.random.default_rng(0).normal(size=(len(means), 40)) * 0.2
    effects = [mean + each - each.mean() for mean, each in zip(means, noise, strict=True)]
    finding = decide(claim, effects, least=0.5, within=0.25)
    assert finding.verdict(0.05) == verdict and finding.low <= finding.estimate <= finding.high


def test_holm_is_its_definition():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9]) and holm([]) == []


def test_tests_and_intervals_of_a_paired_mean_agree():
    values = np.random.default_rng(1).exponential(size=30)
    mean = PairedMean(values)
    for level in (0.5, 0.9, 0.99):
        low, high = mean.interval(level)
        assert mean.above(low) == pytest.approx((1 - level) / 2, rel=1e-6)
        assert mean.below(high) == pytest.approx((1 - level) / 2, rel=1e-6)
    other = mean_over_clusters(values, range(30))
    assert mean.interval() == (other.low, other.high) and mean.value == values.mean()
    constant = PairedMean(np.full(24, 0.3))
    assert constant.interval() == (constant.value,) * 2 and constant.above(0.25) < 1e-3 < constant.below(0.25)
    for wrong in ([1.0], [1.0, np.nan]):
        with pytest.raises(Refused):
            PairedMean(wrong)


def test_a_paired_mean_errs_as_often_as_it_says():
    """One-sided tests of true hypotheses at 5%, over 24 differences: normal, and as skewed as exponential."""
    rng = np.random.default_rng(2)
    for drawn, above, below in (
        (rng.normal, 0.07, 0.07),
        (lambda size: rng.exponential(size=size) - 1, 0.05, 0.09),
    ):
        means = [PairedMean(drawn(size=24)) for _ in range(400)]
        assert 0.005 < np.mean([mean.above(0.0) <= 0.05 for mean in means]) <= above
        assert 0.02 < np.mean([mean.below(0.0) <= 0.05 for mean in means]) <= below
