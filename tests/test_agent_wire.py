"""The client against a scripted server, and whole sessions of a language model through it."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest
from agent_case import Made, only, session
from agent_server import Step, calls, completion, results, serving

from interpcore.agent.digest import INVALID, SILENT
from interpcore.agent.replies import read_reply
from interpcore.agent.report import count, markdown
from interpcore.agent.wire import ChatCompletions, ServerError, backoff
from interpcore.errors import Refused
from interpcore.runs import RunError

KEY = "sk-canary-0123456789"
ASKED = {"model": "stub", "messages": []}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens; the loopback needs no proxy


def run_llm(tmp_path, server, monkeypatch, name="s", instrument=None, **options):
    monkeypatch.setenv("OPENAI_BASE_URL", server.base)
    options = {"llm": "stub", "budget": ("forwards=100000",), **options}
    opened = session(tmp_path / name, instrument or Made(only(1, 3)), "llm", **options)
    opened.answers.sleep = lambda seconds: None
    return opened


def whole_session():
    """Run, compare, claim, finish, each from what the last request carries."""
    ask = {"task": "alpha", "n": 24}

    def claim(request):
        ids = [r["ids"]["run"] for r in results(request) if "run" in r.get("ids", {})]
        return calls(("claim", {"type": "matters", "task": "alpha", "blocks": [1], "runs": ids}))

    def compare(request):
        ids = [r["ids"]["run"] for r in results(request) if "run" in r.get("ids", {})]
        return calls(("compare", {"run_a": ids[0], "run_b": ids[1]}))

    def note(request):
        ids = [r["ids"]["run"] for r in results(request) if "run" in r.get("ids", {})]
        said = {"hypothesis": "block 1", "statement": "loss rises by 5.000", "verdict": "supported"}
        return calls(("note", {**said, "runs": ids}))

    return [
        calls(("list_tasks", {})),
        calls(("run", {"plan": "0, 2-3", **ask}), ("run", {"plan": "1-3", **ask})),
        compare,
        note,
        claim,
        calls(("finish", {"summary": "Block 1 matters.", "claims": ["c1"]})),
    ]


def test_a_session_of_six_calls_is_run_claimed_and_confirmed(tmp_path, monkeypatch):
    with serving(*map(Step, whole_session())) as server, run_llm(tmp_path, server, monkeypatch) as opened:
        opened.run()
        found = opened.report()
        counts, spent = count(opened.ledger), opened.ledger.spent()
    assert (counts.claims, counts.confirmed, counts.invalid) == (1, 1, 0)
    assert found.table.verdict.tolist() == ["confirmed"]
    assert (spent.calls, spent.tokens_in, spent.tokens_out) == (6, 600, 120)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    for request in server.requests:  # every assistant message that called is followed by all its answers
        messages = request["messages"]
        for at, message in enumerate(messages):
            ids = [call["id"] for call in message.get("tool_calls", ())]
            assert [m.get("tool_call_id") for m in messages[at + 1 : at + 1 + len(ids)]] == ids
    names = [tool["function"]["name"] for tool in server.requests[0]["tools"]]
    assert names == ["list_tasks", "run", "compare", "query", "note", "claim", "finish"]
    assert server.requests[0]["parallel_tool_calls"] is False and "max_tokens" in server.requests[0]


def test_the_key_is_nowhere_but_in_the_header(tmp_path, monkeypatch, capfd):
    """A server that echoes it, in an answer and in errors."""
    echo = calls(("run", {"plan": KEY, "task": "alpha"}))
    escaped = json.dumps(echo).replace("sk-", "\\u0073k-").encode()
    denied = Step({"error": {"message": f"Incorrect API key: {KEY}", "code": "invalid_api_key"}}, status=401)
    with serving(Step(echo), Step(escaped), denied) as server:
        with run_llm(tmp_path, server, monkeypatch) as opened, pytest.raises(ServerError) as error:
            opened.run()
        assert KEY not in str(error.value) and "401" in str(error.value) and KEY not in repr(opened.answers)
    for file in (tmp_path / "s").rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("trouble", "sent"),
    [
        ([Step(status=429, headers={"Retry-After": "0"})], 2),
        ([Step(status=408), Step({"error": {"message": "busy"}}, status=409)], 3),
        ([Step(b"<html>oops</html>", status=500)] * 2, 3),
        ([Step(status=503, headers={"Retry-After": "0"})], 2),
        ([Step(reset=True)], 2),
        ([Step(calls(("list_tasks", {})), delay=1.0)], 2),
        ([Step(b'{"choices": [')], 2),
        ([Step(calls(("list_tasks", {})), cut=30)], 2),
        ([Step(b"[]")], 2),
    ],
    ids=[
        "429",
        "408 and 409",
        "500 twice",
        "503",
        "reset",
        "timeout",
        "truncated JSON",
        "closed in the body",
        "no object",
    ],
)
def test_what_passes_is_tried_again_and_counted(tmp_path, monkeypatch, trouble, sent):
    with serving(*trouble, calls(("finish", {"summary": "none"}))) as server:
        with run_llm(tmp_path, server, monkeypatch, timeout=0.4 if trouble[0].delay else 60.0) as opened:
            opened.run()
            spent = opened.ledger.spent()
        assert len(server.requests) == sent == spent.calls
    assert all(request == server.requests[0] for request in server.requests)
    paid = trouble[0].status not in (408, 429)
    assert (spent.held_in > 0) == paid  # the server may have been paid for what nobody saw


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            Step({"error": {"message": "no such model", "code": "model_not_found"}}, status=404),
            "no such model",
        ),
        (Step({"error": {"message": "bad field"}}, status=400), "bad field"),
        (Step({"error": "a plain text"}, status=422), "status 422: a plain text"),
        (Step(b"plain text", status=403), "plain text"),
        (Step({"error": {"message": "pay", "code": "insufficient_quota"}}, status=429), "pay"),
        (Step(status=307, headers={"Location": "http://127.0.0.1:9/"}), "redirect"),
        (Step({"error": {"message": "odd"}}), "odd"),
    ],
)
def test_what_does_not_pass_is_told_once_and_the_session_goes_on_later(tmp_path, monkeypatch, step, says):
    with serving(step, calls(("finish", {"summary": "none"}))) as server:
        with run_llm(tmp_path, server, monkeypatch) as opened, pytest.raises(ServerError, match=says):
            opened.run()
        assert len(server.requests) == 1
        with run_llm(tmp_path, server, monkeypatch) as opened:
            opened.run()
            assert opened.status == "finished" and opened.ledger.spent().calls == 2


def test_a_server_that_is_silent_or_away_is_told_in_a_sentence(monkeypatch):
    with serving(Step(calls(), delay=0.5)) as server:
        client = ChatCompletions(server.base, KEY)
        with pytest.raises(ServerError, match="in time") as silent:
            client.complete(ASKED, 0.05)
    assert silent.value.again and silent.value.paid
    with pytest.raises(ServerError, match="cannot be reached") as away:
        client.complete(ASKED, 1.0)
    assert away.value.again and not away.value.paid


def test_how_long_to_wait():
    assert [backoff(n, 0.0, None) for n in range(1, 7)] == [0.5, 1, 2, 4, 8, 8]
    assert backoff(1, 1.0, None) == 0.375 and backoff(3, 0.5, 7.0) == 7.0
    for header, low, high in (
        ("2", 2, 2),
        ("9999", 60, 60),
        ("-3", 0, 0),
        (formatdate(time.time() + 30), 27, 31),
    ):
        step = Step(status=429, headers={"Retry-After": header})
        with serving(step) as server, pytest.raises(ServerError) as error:
            ChatCompletions(server.base).complete(ASKED, 1.0)
        assert low <= error.value.after <= high


@pytest.mark.parametrize(
    "base", ["localhost:8000", "ftp://x/v1", "http://user:pass@x/v1", "http://x/v1?key=1", ""]
)
def test_an_address_that_is_none_is_refused(base):
    with pytest.raises(Refused) as error:
        ChatCompletions(base, KEY)
    assert "pass" not in str(error.value).replace("password", "")
    with pytest.raises(Refused) as error:
        ChatCompletions("http://x/v1", "a\nb-secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            {"content": "", "tool_calls": [{"function": {"name": "a", "arguments": {"x": 1}}}]},
            ("call_3_0", '{"x": 1}'),
        ),
        ({"tool_calls": [{"id": "k", "function": {"name": "a", "arguments": ""}}]}, ("k", "{}")),
        (
            {"tool_calls": [{"id": "old", "function": {"name": "a"}}], "reasoning_content": "x"},
            ("call_3_0", "{}"),
        ),
    ],
)
def test_calls_are_read_as_servers_write_them(message, wanted):
    reply = read_reply(completion(message, finish="stop", usage=None), 3, ["old"])
    [call] = reply.calls
    assert (call.id, call.arguments) == wanted and reply.usage is None


def test_two_calls_of_one_id_get_ids_of_their_own():
    twice = {"tool_calls": [{"id": "a", "function": {"name": "x", "arguments": "{}"}}] * 2}
    assert [call.id for call in read_reply(completion(twice), 5).calls] == ["a", "call_5_1"]
    for nonsense in (
        {},
        {"choices": []},
        {"choices": "x"},
        {"choices": [{"message": {"tool_calls": [1, {}]}}]},
    ):
        assert read_reply(nonsense, 0).content is None


def test_invalid_calls_are_told_counted_and_end_a_session_at_three(tmp_path, monkeypatch):
    broken = completion(
        {"content": None, "tool_calls": [{"id": "b", "function": {"name": "run", "arguments": '{"plan": '}}]}
    )
    steps = [
        broken,
        calls(("run", {"plan": "1-3", "task": "alpha"})),
        calls(("fly", {})),
        calls(("run", {"plan": "1-3", "task": "alpha", "n": 0})),
        calls(("run", {"plan": "0-9", "task": "alpha"})),
        calls(("list_tasks", {})),
    ]
    with serving(*steps) as server, run_llm(tmp_path, server, monkeypatch) as opened:
        opened.run()
        assert opened.ledger.value("SELECT stop_reason FROM sessions") == INVALID
        assert "3 invalid calls in a row; the last: plan names block 4" in opened.report().problems[0]
        assert opened.status == "finished" and count(opened.ledger).invalid == 4
    assert len(server.requests) == 5  # a good call in between starts the count again
    first, good, unknown, few = results(server.requests[4])
    assert first["error"]["type"] == "invalid" and "JSON" in first["error"]["message"] and "ids" in good
    assert "run" in unknown["error"]["allowed"] and few["error"]["field"] == "n"
    carried = next(m for m in server.requests[1]["messages"] if m["role"] == "assistant")
    json.loads(carried["tool_calls"][0]["function"]["arguments"])  # JSON, as servers read it again


@pytest.mark.parametrize(
    "nonsense",
    [
        completion({"content": "I think..."}, finish="stop"),
        completion({"content": None, "refusal": "I cannot help with that."}, finish="content_filter"),
        {"nonsense": 1},
        {"choices": []},
    ],
    ids=["text", "refusal", "no completion", "no choice"],
)
def test_a_model_that_calls_no_tool_is_reminded_of_once_and_ends_the_session(tmp_path, monkeypatch, nonsense):
    good = calls(("run", {"plan": "1-3", "task": "alpha"}))
    with serving(good, nonsense) as server, run_llm(tmp_path, server, monkeypatch) as opened:
        opened.run()
        assert opened.ledger.value("SELECT stop_reason FROM sessions") == SILENT
        assert "called no tool" in opened.report().problems[0]
        assert count(opened.ledger).invalid == 0 and opened.status == "finished"
        assert len(opened.ledger.rows("SELECT 1 FROM runs")) == 2  # the intact plan's too
    assert len(server.requests) == 3 and server.requests[-1]["messages"][-1]["role"] == "user"


def test_requests_leave_out_what_a_server_refuses(tmp_path, monkeypatch):
    given = {"tokens_field": "max_completion_tokens", "leave_out": ("parallel_tool_calls", "seed")}
    with (
        serving(calls(("finish", {"summary": "none"}))) as server,
        run_llm(tmp_path, server, monkeypatch, temperature=0.5, **given) as opened,
    ):
        opened.run()
    [request] = server.requests
    assert request["max_completion_tokens"] == 1024 and request["temperature"] == 0.5
    assert not {"max_tokens", "parallel_tool_calls", "seed", "stream"} & set(request)


def test_an_answer_that_was_cut_off_is_an_error_to_the_model(tmp_path, monkeypatch):
    cut = calls(("run", {"plan": "1-3", "task": "alpha"}), finish="length")
    steps = (cut, calls(("finish", {"summary": "none"})))
    with serving(*steps) as server, run_llm(tmp_path, server, monkeypatch) as opened:
        opened.run()
        assert not opened.ledger.rows("SELECT 1 FROM runs")
    assert results(server.requests[1])[0]["error"]["type"] == "cut"


def test_a_session_replays_byte_for_byte_with_the_server_down(tmp_path, monkeypatch):
    steps = (Step(status=500), *map(Step, whole_session()))
    with serving(*steps) as server, run_llm(tmp_path, server, monkeypatch) as opened:
        opened.run()
        opened.report()
    options = {"llm": "stub", "budget": ("forwards=100000",)}
    with run_llm(tmp_path, server, monkeypatch) as record:
        with session(tmp_path / "again", Made(only(1, 3)), "llm", replay=record.ledger, **options) as again:
            again.run()
            again.report()
            assert markdown(again.ledger) == markdown(record.ledger)
            assert again.ledger.value("SELECT source FROM llm_calls") == "replay"
        for name in ("report.md", "report.html"):
            old, new = ((tmp_path / f / "artifacts" / name).read_bytes() for f in ("s", "again"))
            assert old == new
        differs = pytest.raises(RunError, match=r"messages\[\d+\].* was .* and is ")
        changed = Made(only(0, 1))
        with session(tmp_path / "x", changed, "llm", replay=record.ledger, **options) as other, differs:
            other.run()


@pytest.mark.parametrize("limit", ["calls=3", "prompt_tokens=40000", "completion_tokens=3000", "money=0.05"])
def test_no_budget_is_overshot_whatever_the_server_does(tmp_path, monkeypatch, limit):
    steps = [Step(status=500), *[Step(calls(("list_tasks", {}), usage=(3000, 900)))] * 50]
    options = {"budget": (limit,), "price_in": 1.0, "price_out": 2.0}
    with serving(*steps) as server, run_llm(tmp_path, server, monkeypatch, **options) as opened:
        opened.run()
        used = opened.account().used()
        for name, most in opened.options.limits.items().items():
            assert 0 < used[name] <= most
        assert opened.ledger.value("SELECT stop_reason FROM sessions").startswith("budget")
        last = server.requests[-1]["messages"][1]["content"]
        assert used["calls"] == len(server.requests)
        assert (
            "This is the last request" in last
            and "This is the last" not in server.requests[0]["messages"][1]["content"]
        )


def test_tokens_that_a_server_does_not_count_are_held_at_the_most_they_can_be(tmp_path, monkeypatch):
    with serving(calls(("list_tasks", {}), usage=None)) as server:
        options = {"budget": ("prompt_tokens=60000",)}
        with run_llm(tmp_path, server, monkeypatch, **options) as opened:
            opened.run()
            spent = opened.ledger.spent()
    assert spent.tokens_in == 0 < spent.held_in <= 60000
    assert spent.held_in == sum(len(json.dumps(r, separators=(",", ":")).encode()) for r in server.requests)


def test_what_a_session_needs_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(Refused, match="OPENAI_BASE_URL"):
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        session(tmp_path / "a", Made(only(1)), "llm", llm="stub")
    with pytest.raises(Refused, match="INTERPCORE_LLM_MODEL"):
        monkeypatch.delenv("INTERPCORE_LLM_MODEL", raising=False)
        session(tmp_path / "a", Made(only(1)), "llm")
    with pytest.raises(Refused, match="prices"):
        session(tmp_path / "a", Made(only(1)), "llm", llm="stub", budget=("money=1",))
    assert not (tmp_path / "a").exists()
