"""The loop of a session: ask, commit, act, commit, until it ends; then confirm what was found, and report.

All state is in the ledger. A session that was killed goes on where its last transaction left it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from interpcore.agent.answers import (
    Answers,
    FromRecord,
    Question,
    answers_for,
    attempted,
    over_with,
)
from interpcore.agent.budget import Account, Spend
from interpcore.agent.confirm import confirm
from interpcore.agent.digest import (
    INVALID,
    MOST_INVALID,
    REMINDER,
    SILENT,
    build_request,
    request_hash,
    request_text,
)
from interpcore.agent.instrument import Instrument, task_named
from interpcore.agent.lab import Lab
from interpcore.agent.ledger import FILE, SessionLedger
from interpcore.agent.options import SessionOptions
from interpcore.agent.replies import ToolCall, read_reply
from interpcore.agent.studies import StudyTool
from interpcore.agent.tool import ALWAYS, OverBudget, Tool, told, unknown
from interpcore.agent.tools import TOOLS
from interpcore.agent.wire import ServerError
from interpcore.errors import Refused
from interpcore.runs import RunCard, RunFolder, experiment
from interpcore.runs.progress import Progress

AnyTool = Tool | StudyTool


@dataclass(eq=False)
class Session(experiment.Study):
    """A session at work.

    Attributes:
        instrument: what it measures with.
        ledger: what is done.
        answers: who decides.
        clock: seconds of wall time at step n of the ledger.
        tools: beside those that every session has.
    """

    options: SessionOptions
    instrument: Instrument = field(kw_only=True)
    ledger: SessionLedger = field(kw_only=True)
    answers: Answers = field(kw_only=True)
    clock: Callable[[int], float] = field(kw_only=True)
    tools: Sequence[AnyTool] = field(kw_only=True, default=())

    def __post_init__(self) -> None:
        folder = None if self.artifacts is None else self.artifacts.artifact("studies")
        record = self.answers.record if isinstance(self.answers, FromRecord) else None
        self.lab = Lab(self.instrument, self.ledger, self.options, folder, record)
        self.by_name: dict[str, AnyTool] = {tool.name: tool for tool in (*TOOLS, *self.tools)}
        self.described = [tool.described() for tool in self.by_name.values()]
        self.id = str(self.ledger.value("SELECT id FROM sessions"))

    def run(self) -> None:
        """Go on until the session is finished.

        Raises: ServerError where no answer can be had; the session stays open and goes on with the next run.
        """
        with Progress(self.options.policy, 1, shown=self.progress) as shown:
            while self.status == "open":
                self._step()
            if self.status == "confirming":
                confirm(self.lab, self.account, self._spend)
            shown.advance()

    def report(self) -> experiment.Report:
        """The claims as a table, and the whole session as Markdown and HTML, from the ledger alone."""
        from interpcore.agent.report import report

        return report(self.ledger, self.artifacts)

    def close(self) -> None:
        """See `Study.close`."""
        self.ledger.close()
        super().close()

    @property
    def status(self) -> str:
        """open, confirming or finished."""
        return str(self.ledger.value("SELECT status FROM sessions"))

    def account(self, *, open_attempts: bool = True) -> Account:
        """What may still be spent.

        Args:
            open_attempts: count attempts at a request that has no answer yet, too.
        """
        spent, elapsed = self.ledger.spent(), self.ledger.elapsed()
        pace = elapsed / spent.forwards if spent.forwards else 0.0
        if open_attempts:
            spent += attempted(self.ledger, self._next())
        reserved = sum(self.lab.confirmation([claim for _, claim in self.lab.supported()]).values())
        fresh = Account.of(self.options)
        return Account(fresh.limits, fresh.prices, spent, self.clock(self._steps()), reserved, pace)

    def _step(self) -> None:
        """One request, or one tool call, or the end."""
        transcript = self.ledger.messages()
        reason = ended(transcript)
        if reason is None and (call := pending(transcript)) is not None:
            self._act(call)
            return
        asked = self._request(transcript)
        reason = reason or self._out_of_requests(asked[1])
        if reason is not None:
            self._stop(reason)
            return
        try:
            self._ask(transcript, *asked)
        except ServerError:
            if self._out_of_requests(asked[1]) is None:
                raise

    def _request(self, transcript: list[dict[str, Any]]) -> tuple[dict[str, Any], str, str | None]:
        """The next request, its text, and why it is the last; what is committed alone decides all three."""
        account = self.account(open_attempts=False)
        last = account.exhausted()
        request = build_request(self.lab, account, transcript, last, self.described)
        text = request_text(request)
        if last is None and self._priced(account, text, times=2) is not None:
            last = "what is left is enough for one"
            request = build_request(self.lab, account, transcript, last, self.described)
            text = request_text(request)
        return request, text, last

    def _priced(self, account: Account, text: str, times: int = 1) -> str | None:
        if self.options.policy == "llm":
            return over_with(account, text, self.options.max_tokens, times)
        return account.over(calls=times)

    def _out_of_requests(self, text: str) -> str | None:
        """Why no further request is made, None where this one may be."""
        if isinstance(self.answers, FromRecord):
            return self.answers.ended(self._next())
        final = self.ledger.value("SELECT what FROM spend WHERE what LIKE 'last request%'")
        if final is not None:
            return f"budget: {self.account().exhausted() or 'no further request fits'}"
        over = self._priced(self.account(), text)
        return None if over is None else f"budget: {over}"

    def _ask(
        self, transcript: list[dict[str, Any]], request: dict[str, Any], text: str, last: str | None
    ) -> None:
        n = self._next()
        question = Question(n, text, request_hash(text), request, transcript, self.account)
        answer = self.answers.answer(question)
        used = [call["id"] for message in transcript for call in message.get("tool_calls", ())]
        reply = read_reply(answer.response, n, used)
        with self.ledger.transaction():
            self._say(reply.message)
            self._spend(f"last request {n}: {last}" if last else f"request {n}", answer.spend)
            for call in reply.calls if reply.cut else ():
                cut = (
                    f"The answer ended at its limit of tokens, so that {call.name} was not called; say less."
                )
                self._answer_call(call, self._told(call, Refused(cut), "cut"), Spend())
            if not reply.calls and not reminded(transcript):
                self._say({"role": "user", "content": REMINDER})
            self.ledger.insert(
                "llm_calls",
                session=self.id,
                n=n,
                request_hash=question.hash,
                request=text,
                response=answer.response,
                usage=None if reply.usage is None else list(reply.usage),
                seconds=answer.seconds,
                retries=answer.retries,
                source=self.answers.source,
            )

    def _act(self, call: ToolCall) -> None:
        """Run a tool and commit what came of it: all in one transaction."""
        account = self.account()
        try:
            with self.ledger.transaction():
                result, forwards = self._obeyed(call, account)
                self._answer_call(call, result, Spend(forwards=forwards))
        except OverBudget as error:
            self._refuse(call, self._told(call, error, "budget"), error.forwards)
        except Refused as error:
            self._refuse(call, self._told(call, error, "invalid"))

    def _told(self, call: ToolCall, error: Refused, kind: str) -> dict[str, Any]:
        tool = self.by_name.get(call.name)
        return unknown(call.name, list(self.by_name)) if tool is None else told(error, kind, tool.fields)

    def _obeyed(self, call: ToolCall, account: Account) -> tuple[dict[str, Any], int]:
        tool = self.by_name.get(call.name)
        if tool is None:
            raise Refused(f"There is no tool {call.name!r}.")
        reached = account.exhausted()
        if reached is not None and call.name not in ALWAYS:
            raise OverBudget(
                f"The limit of {reached.replace('_', ' ')} is reached; only note and finish are left."
            )
        return tool.obey(self.lab, account, call.arguments)

    def _refuse(self, call: ToolCall, said: dict[str, Any], forwards: int = 0) -> None:
        with self.ledger.transaction():
            self._answer_call(call, said, Spend(forwards=forwards))

    def _answer_call(self, call: ToolCall, result: dict[str, Any], spend: Spend) -> None:
        self._say({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
        self._spend(f"tool {call.name}", spend)

    def _say(self, message: dict[str, Any]) -> None:
        n = self.ledger.value("SELECT COUNT(*) FROM messages")
        self.ledger.insert("messages", session=self.id, n=n, role=message["role"], content=message)

    def _spend(self, what: str, spend: Spend) -> None:
        """Add a step to what was spent; inside the transaction of what it was spent on."""
        n = self._steps()
        money = Account.of(self.options).money(spend.tokens_in, spend.tokens_out)
        row = {name: getattr(spend, name) for name in spend.__dataclass_fields__}
        self.ledger.insert(
            "spend", session=self.id, n=n, what=what, money=repr(money), seconds=self.clock(n), **row
        )

    def _stop(self, reason: str) -> None:
        with self.ledger.transaction():
            self.ledger.change("UPDATE sessions SET status = 'confirming', stop_reason = ?", reason)

    def _next(self) -> int:
        return int(self.ledger.value("SELECT COUNT(*) FROM messages"))

    def _steps(self) -> int:
        return int(self.ledger.value("SELECT COUNT(*) FROM spend"))


def pending(transcript: list[dict[str, Any]]) -> ToolCall | None:
    """The first call of the last assistant message that no tool message answers."""
    asked = [message for message in transcript if message["role"] == "assistant"]
    done = {message["tool_call_id"] for message in transcript if message["role"] == "tool"}
    for call in asked[-1].get("tool_calls", ()) if asked else ():
        if call["id"] not in done:
            function = call["function"]
            return ToolCall(call["id"], function["name"], function["arguments"])
    return None


def ended(transcript: list[dict[str, Any]]) -> str | None:
    """Why the transcript is at its end; None while it goes on."""
    results = [json.loads(message["content"]) for message in transcript if message["role"] == "tool"]
    if results and results[-1].get("finished"):
        return "finished"
    last = results[-MOST_INVALID:]
    if len(last) == MOST_INVALID and all(invalid(result) for result in last):
        return INVALID
    if transcript and transcript[-1]["role"] == "assistant" and not transcript[-1].get("tool_calls"):
        return SILENT  # a first one is followed by a reminder
    return None


def invalid(result: dict[str, Any]) -> bool:
    """Whether a tool's result says that its call was no call."""
    return "error" in result and result["error"]["type"] != "budget"


def reminded(transcript: list[dict[str, Any]]) -> bool:
    """Whether the policy was already told to call a tool."""
    return any(message["role"] == "user" for message in transcript)


def running_clock(ledger: SessionLedger) -> Callable[[int], float]:
    """Seconds that the session has run, over all of its processes."""
    before, began = ledger.elapsed(), time.monotonic()
    return lambda step: before + time.monotonic() - began


def recorded_clock(record: SessionLedger) -> Callable[[int], float]:
    """Seconds at each step as a record has them, so that what depended on time does so again."""
    rows = record.rows("SELECT seconds FROM spend ORDER BY n")
    times = [float(row["seconds"]) for row in rows] or [0.0]
    return lambda step: times[min(step, len(times) - 1)]


def open_session(
    instrument: Instrument,
    out: str | os.PathLike[str],
    options: SessionOptions,
    card: RunCard,
    *,
    replay: SessionLedger | None = None,
    model: Any = None,
    tools: Sequence[AnyTool] = (),
    workers: int = 1,
    progress: bool = False,
) -> Session:
    """A session in its folder, new or gone on with; use it as a context manager. A folder is one session's:
    another process is refused while it is in use, and another goal, model, budget or policy is refused.

    Args:
        instrument: what is measured with.
        out: the folder.
        options: goal, policy, budget.
        card: what the session means; the options, the instrument and its tasks are added here.
        replay: the ledger of a session whose answers are given again; no server is asked.
        model: what the instrument runs, where there is one.
        tools: of the instrument and of other families' experiments, beside those that every session has.
        workers: a session is one process; more are refused.
        progress: show it on standard error.
    Raises: Refused, RunError before anything is written.
    """
    if options.policy == "llm" and options.llm is None:
        options = replace(options, llm=os.environ.get("INTERPCORE_LLM_MODEL") or None)
    if workers != 1:
        raise Refused("A session decides one step after the other, in one process; leave workers out.")
    for task in options.tasks:
        task_named(instrument, task)
    if options.metric not in instrument.metrics:
        raise Refused(f"metric is {options.metric!r}; there are {', '.join(instrument.metrics)}.")
    arguments = {
        **options.arguments(),
        "tasks": {name: task.key for name, task in instrument.tasks.items()},
        "instrument": dict(instrument.identity),
    }
    card = replace(card, arguments=arguments, seeds={"session": options.seed})
    with closing(SessionLedger(None)) as none:
        answers_for(options, instrument, none, replay)  # refuses what cannot answer
    folder = RunFolder.open_or_create(out, card)
    try:
        ledger = SessionLedger(folder.artifact(FILE))
        begin(ledger, card)
        answers = answers_for(options, instrument, ledger, replay)
        clock = running_clock(ledger) if replay is None else recorded_clock(replay)
        return Session(
            model,
            options,
            folder.artifacts,
            folder,
            progress=progress,
            instrument=instrument,
            ledger=ledger,
            answers=answers,
            clock=clock,
            tools=tools,
        )
    except BaseException:
        folder.close()
        raise


def in_memory(instrument: Instrument, options: SessionOptions) -> Session:
    """A session that leaves nothing on the disk, such as one of a bench."""
    ledger = SessionLedger(None)
    arguments = {**options.arguments(), "instrument": dict(instrument.identity)}
    begin(ledger, RunCard(arguments=arguments))
    answers = answers_for(options, instrument, ledger, None)
    return Session(
        None, options, instrument=instrument, ledger=ledger, answers=answers, clock=running_clock(ledger)
    )


def begin(ledger: SessionLedger, card: RunCard) -> None:
    """Write the session's row, unless it is there."""
    if ledger.value("SELECT 1 FROM sessions") is None:
        with ledger.transaction():
            said = {
                name: v for name, v in card.to_json().items() if name not in ("command", "host", "created")
            }
            ledger.insert(
                "sessions",
                id=f"s{card.key[:10]}",
                card=said,
                status="open",
                started=time.time(),
                finished=None,
                stop_reason=None,
                summary=None,
            )
