"""Tools beside plans on tasks: token tables, stand-ins, other families' experiments, metered and replayed."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from agent_case import CARD
from test_agent_session import Scripted

import interpcore
from interpcore.agent import ledger as ledgers
from interpcore.agent.instrument import halves
from interpcore.agent.ledger import SessionLedger
from interpcore.agent.options import SessionOptions
from interpcore.agent.report import markdown
from interpcore.agent.session import open_session
from interpcore.agent.studies import StudyTool, block_work
from interpcore.cli import agent_tools
from interpcore.cli.agent_instrument import PlansOnTasks
from interpcore.data.tasks import make_task, read_tasks
from interpcore.errors import Refused
from interpcore.ops import WorkSpent, metered, product
from interpcore.review.experiments import experiments
from interpcore.runs.options import declared
from interpcore.surgery.token_table import changed_tokens

FIT = {"prompts": 4, "length": 24, "skip": 2, "slice_size": 2}


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny", check=False)


def opened(out, model, names=("lens fit", "lens read"), replay=None, data=None, **options):
    instrument = PlansOnTasks(model, [make_task("facts", 80)])
    tools = (*agent_tools.own_tools(instrument), *agent_tools.study_tools(names, data or {}, instrument))
    asked = SessionOptions(experiments=names, **options)
    return open_session(instrument, out, asked, CARD, replay=replay, tools=tools)


def scripted(session, *asked):
    """What the tools answered."""
    if asked:
        Scripted(session, *asked)
    session.run()
    session.report()
    return [json.loads(m["content"]) for m in session.ledger.messages() if m["role"] == "tool"]


def first(kind):
    """The id of the first result that has one."""
    return lambda results: next(r["ids"][kind] for r in results if kind in r.get("ids", {}))


def test_a_session_reads_tokens_and_runs_other_families_experiments_and_replays(tiny, tmp_path):
    study = first("study")

    def note(results):
        fit = next(r for r in results if "study" in r.get("ids", {}))
        column = next(k for k, v in fit["rows"][0].items() if isinstance(v, float) and "." in repr(v))
        said = {
            "hypothesis": "h",
            "statement": f"{column} is {fit['rows'][0][column]:.4f}.",
            "verdict": "open",
        }
        return said | {"runs": [study(results)]}

    script = [
        ("run", {"plan": "0, 2-3", "task": "facts", "n": 4}),
        ("tokens", lambda results: {"run": first("run")(results), "k": 2}),
        ("lens_fit", FIT),
        ("lens_read", lambda results: {"lens": study(results), "prompt": "The capital of France is"}),
        ("rows", lambda results: {"study": study(results), "sort": "depth", "descending": True, "limit": 1}),
        ("note", note),
        ("lens_fit", FIT),
    ]
    with opened(tmp_path / "s", tiny) as session:
        said = scripted(session, *script)
        assert not [each for each in said if "error" in each]
        spent = session.ledger.rows("SELECT what, forwards FROM spend WHERE what LIKE 'tool%'")
        record = [row["response"] for row in session.ledger.rows("SELECT response FROM llm_calls ORDER BY n")]
        text = markdown(session.ledger)
        tokens, fit, read, rows = said[1], said[2], said[3], said[4]
        with opened(tmp_path / "again", tiny, replay=session.ledger) as again:
            assert scripted(again) == said and markdown(again.ledger) == text
            assert not (tmp_path / "again/artifacts/studies").exists()
    assert len(record) == 8 and said[6] == fit and spent[6]["forwards"] == 0
    assert {"tool lens_fit", "tool lens_read"} <= {r["what"] for r in spent if r["forwards"] > 20}
    assert [row["depth"] for row in rows["rows"]] == [max(r["depth"] for r in fit["rows"])] and rows[
        "left_out"
    ]
    assert "lens fit" in text and fit["ids"]["study"] in text and str(tmp_path) not in json.dumps(said)
    ids = tiny.encode(tokens["prompt"])[0][0]
    want = changed_tokens(tiny, tiny.plan.skip(1), ids, 2)[-1]
    assert tokens["kl"] == pytest.approx(want["kl"], rel=1e-4) and len(tokens["more"]) == 2
    assert read["rows"] and "study" in read["ids"]


def test_surgerys_own_verbs_see_no_item_that_is_kept_back_for_confirming(tiny, tmp_path):
    instrument = PlansOnTasks(tiny, [make_task("facts", 80)])
    seen, kept = halves(instrument.tasks["facts"])
    [read] = read_tasks(instrument.explored(tmp_path))
    assert kept and {item.id for item in read.examples} == set(seen)
    with opened(tmp_path / "s", tiny, ("surgery map",)) as session:
        said = scripted(session, *(("surgery_map", {"task": [task], "n": 4}) for task in ("facts", "sums-1")))
    assert said[0]["rows"] and "study" in said[0]["ids"]
    assert "sums-1" in said[1]["error"]["message"]


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("surgery_map", {"tasks": "tasks.json"}, "not yours to choose"),
        ("surgery_run", {"plan": ["recipe.yml"]}, "a file"),
        ("lens_read", {"lens": "/etc/passwd"}, "id of an earlier study"),
        ("lens_fit", {"text": "/etc"}, "id of an earlier study"),
        ("lens_fit", {"prompts": 1}, "at least 2"),
        ("lens_fit", {"command": "rm"}, "no option here"),
        ("lens_read", {}, "lens is needed"),
        ("neurons_weights", {"partners": ["gpt2"]}, "not yours"),
        ("rows", {"study": "e0"}, "no study of this session"),
        ("tokens", {"run": "r0"}, "no run of this session"),
        ("linear_guess", {"a": 3, "b": 9}, "blocks 0 to 3"),
        ("steering_accuracy", {}, "broke off"),
        ("circuits_evaluate", {"scores": "x"}, "no tool"),
        ("surgery_talk", {"plan": ["skip 1", "/etc/x.YML"]}, "plan is '/etc/x.YML', a file"),
        ("surgery_tokens", {"plan": "recipe.yaml"}, "a file"),
        ("surgery_talk", {"plan": ["skip 9"]}, "no block call 9"),
        ("surgery_patch", {"tasks": "/etc/passwd"}, "not yours to choose"),
        ("surgery_map", {"task": ["sums-1"]}, "no task 'sums-1'"),
    ],
)
def test_what_a_policy_may_not_do_is_told_and_writes_nothing(tiny, tmp_path, name, arguments, says):
    names = ("lens fit", "lens read", "neurons weights", "steering accuracy", "surgery map", "surgery run")
    names += ("surgery talk", "surgery tokens", "surgery patch")
    with opened(tmp_path / "s", tiny, names) as session:
        [said, _] = scripted(session, (name, arguments))
    assert says in said["error"]["message"] or name == "steering_accuracy"
    assert said["error"]["type"] == "invalid" and not list(tmp_path.rglob("*.safetensors"))


def test_surgerys_own_experiments_are_tools_on_the_items_that_policies_see(tiny, tmp_path):
    """Every verb, metered, replayed without being run, and without an item that is kept back."""
    verbs = ("tasks", "run", "compare", "map", "repeat", "influence", "tokens", "patch", "trace", "talk")
    items = {"task": ["facts"], "n": 80}
    script = [
        ("surgery_tasks", items),
        ("surgery_run", {**items, "plan": ["keep first 2", "random 2"], "draws": 2}),
        ("surgery_compare", {**items, "plan_a": "skip 3"}),
        ("surgery_map", {**items, "kind": ["skip", "ranges-skip"]}),
        ("surgery_repeat", {**items, "times": [2]}),
        ("surgery_influence", items),
        ("surgery_tokens", {"plan": "skip 1"}),
        ("surgery_patch", {"n": 2}),
        ("surgery_trace", {"draws": 2}),
        ("surgery_talk", {"plan": ["0, mean(1-2), 3"], "new_tokens": 3}),
        ("surgery_stand_in", {"span": ["2"], "fit": 30, "choose": 3, "test": 5, "draws": 2}),
    ]
    names = tuple(f"surgery {verb}" for verb in (*verbs, "stand-in"))
    budget = ("forwards=100000000",)
    with opened(tmp_path / "s", tiny, names, budget=budget) as session:
        said = scripted(session, *script)
        assert [each for each in said if "error" in each] == [] and all(each["rows"] for each in said[:-1])
        spent = session.ledger.rows("SELECT what, forwards FROM spend WHERE what LIKE 'tool surgery%'")
        assert len(spent) == len(script) and min(each["forwards"] for each in spent) > 0
        kept = set(halves(session.instrument.tasks["facts"])[1])
        [folder] = (tmp_path / "s/artifacts/studies").glob("surgery-*")
        texts = [json.dumps(said), *(f.read_text() for f in folder.rglob("*.csv"))]
        assert len(kept) > 20 and not [item for item in kept for text in texts if item in text]
        with opened(tmp_path / "again", tiny, names, session.ledger, budget=budget) as again:
            assert scripted(again) == said and markdown(again.ledger) == markdown(session.ledger)
            assert not (tmp_path / "again/artifacts/studies").exists()


def test_a_study_is_stopped_before_it_would_overshoot_and_goes_on_with_more(tiny, tmp_path):
    with opened(tmp_path / "s", tiny, budget=("forwards=300",)) as session:
        said = scripted(session, ("lens_fit", FIT))
        spent = session.ledger.spent().forwards
    assert said[0]["error"]["type"] == "budget" and 0 < spent <= 300
    with pytest.raises(Refused, match="no experiment 'lens draw'"):
        opened(tmp_path / "x", tiny, ("lens draw",))
    with pytest.raises(Refused, match="no file that an experiment"):
        opened(tmp_path / "x", tiny, data={"scores": "x"})


def test_linear_guess_is_the_stand_in_of_layer_surgery(tiny, tmp_path, monkeypatch):
    small = {"fit": 30, "choose": 3, "test": 5, "draws": 4}
    monkeypatch.setattr(agent_tools, "DOCUMENTS", small)
    with opened(tmp_path / "s", tiny, ()) as session:
        ask = {"a": 2, "b": 3}
        said = scripted(session, ("linear_guess", ask), ("linear_guess", {**ask, "method": "ridge"}))
        spent = [row["forwards"] for row in session.ledger.rows("SELECT forwards FROM spend")]
    every = {row["method"]: row for row in said[0]["rows"]}
    assert set(every) == set(agent_tools.METHODS) and said[1]["rows"] == [every["ridge"]]
    assert every["ridge"]["kl"] < every["constant"]["kl"] and sum(spent) == max(spent) > 1000


def test_work_is_counted_product_by_product():
    x, w = torch.ones(3, 4), torch.ones(4, 5)
    with metered() as outer:
        with metered(limit=125) as meter:
            product(x, w)
            product(x, w)
            with pytest.raises(WorkSpent):
                product(x, w)
        with metered(until=0.0), pytest.raises(WorkSpent):
            product(x, w)
    product(x, w)
    assert meter.done == 120 and outer.done >= 120


def test_a_forward_is_a_token_through_a_block(tiny):
    tokens = torch.arange(2, 22)[None]
    with metered() as meter, torch.no_grad():
        tiny.forward(tokens, logits_at=None)
    assert meter.done == 20 * 4 * block_work(tiny)


def test_nothing_that_a_policy_gives_can_name_a_file(tiny):
    for experiment in agent_tools.offered().values():
        tool = StudyTool(experiment, tiny, {})
        shown = tool.described()["function"]["parameters"]
        for each in tool.fields:
            if each.outside and each.name in shown["properties"]:
                assert set(shown["properties"][each.name]) == {"type", "description"}
        assert set(shown["required"]) <= set(shown["properties"])


def test_every_argument_that_is_read_as_a_path_says_so():
    """Fields that an options file hands to Path, open or a reader of files."""
    classes = {c for e in experiments() for c in (e.options, e.asks) if c is not None}
    fields = {(c.__module__.split(".")[1], e.name): e for c in classes for e in declared(c)}
    root, checked = Path(interpcore.__file__).parent, 0
    for file in root.glob("*/options.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            reads = node.func.id == "Path" or node.func.id.startswith(("load_", "read_"))
            for given in node.args[:1] if reads else ():
                if isinstance(given, ast.Attribute) and (file.parent.name, given.attr) in fields:
                    assert fields[file.parent.name, given.attr].outside, (file, given.attr)
                    checked += 1
    assert checked > 8


def test_a_ledger_of_the_first_version_is_read_and_gone_on_with(tmp_path):
    import sqlite3

    file = tmp_path / "session.sqlite"
    with sqlite3.connect(file) as old:
        old.executescript(ledgers._SCHEMA + "PRAGMA user_version = 1;")
    old.close()
    ledger = SessionLedger(file, read_only=True)
    assert not ledger.has("studies")
    ledger.close()
    ledger = SessionLedger(file)
    assert ledger.has("studies") and ledger.value("PRAGMA user_version") == 2
    ledger.close()
