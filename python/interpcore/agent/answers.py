"""Where answers come from: a coroutine, a server, or the record of an earlier session."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from interpcore.agent.budget import Account, Spend
from interpcore.agent.ledger import SessionLedger
from interpcore.agent.options import SessionOptions
from interpcore.agent.policies import Offline
from interpcore.agent.replies import read_reply
from interpcore.agent.wire import ChatCompletions, ServerError, backoff
from interpcore.errors import Refused, RunError


@dataclass(frozen=True)
class Question:
    """One request, as it stands in the ledger.

    Attributes:
        n: number of the message that answers it.
        text: the request, canonical JSON.
        hash: its name.
        request: the request.
        transcript: all messages so far.
        account: gives what is left now.
    """

    n: int
    text: str
    hash: str
    request: dict[str, Any]
    transcript: Sequence[dict[str, Any]]
    account: Callable[[], Account]


@dataclass(frozen=True)
class Answer:
    """A response, and what it took."""

    response: dict[str, Any]
    spend: Spend
    retries: int = 0
    seconds: float = 0.0


class Answers(Protocol):
    """Who answers. `source` is what the ledger calls it: policy, live or replay."""

    source: str

    def answer(self, question: Question) -> Answer:
        """The next message. Raises: ServerError, RunError where there is none."""
        ...


@dataclass
class FromPolicy:
    """A policy of this package; an answer counts as a call and costs nothing else."""

    policy: Offline
    source: str = "policy"

    def answer(self, question: Question) -> Answer:
        """See `Answers`."""
        return Answer(self.policy.answer(question.transcript), Spend(calls=1))


@dataclass
class FromServer:
    """A language model. Every attempt is in the ledger before it is sent, so that one that a kill or a broken
    connection cut off is counted, at the most that it can have cost.

    Attributes:
        client: the server.
        ledger: the session's.
        options: the session's.
        sleep: waits so many seconds.
    """

    client: ChatCompletions
    ledger: SessionLedger
    options: SessionOptions
    sleep: Callable[[float], None] = time.sleep
    source: str = field(default="live")

    def answer(self, question: Question) -> Answer:
        """See `Answers`."""
        began, tries = time.monotonic(), 0
        while True:
            attempt = 1 + self.ledger.value("SELECT COUNT(*) FROM attempts WHERE n = ?", question.n)
            over = over_with(question.account(), question.text, self.options.max_tokens)
            if over is not None:
                raise ServerError(f"No further attempt fits the budget: {over}.", again=False)
            most_in = len(question.text.encode())
            self._note(question.n, attempt, "sent", most_in)
            tries += 1
            try:
                timeout = min(self.options.timeout, max(question.account().left("seconds"), 1.0))
                response = self.client.complete(question.request, timeout)
            except ServerError as error:
                self._note(question.n, attempt, "maybe paid" if error.paid else "failed", most_in)
                if not error.again or tries > self.options.retries:
                    raise
                jitter = random.Random(f"{self.options.seed} {question.n} {attempt}").random()
                self.sleep(backoff(tries, jitter, error.after))
                continue
            usage = read_reply(response, question.n).usage
            spend = attempted(self.ledger, question.n, but=attempt)
            spend += answered(usage, most_in, self.options.max_tokens)
            return Answer(response, spend, tries - 1, time.monotonic() - began)

    def _note(self, n: int, attempt: int, state: str, most_in: int) -> None:
        session = self.ledger.value("SELECT id FROM sessions")
        held = {"held_in": most_in, "held_out": self.options.max_tokens}
        with self.ledger.transaction():
            self.ledger.change("DELETE FROM attempts WHERE n = ? AND attempt = ?", n, attempt)
            self.ledger.insert("attempts", session=session, n=n, attempt=attempt, state=state, **held)


@dataclass
class FromRecord:
    """The answers that an earlier session was given, found by the hash of the request.

    Attributes:
        record: the earlier session's ledger.
    """

    record: SessionLedger
    source: str = "replay"

    def answer(self, question: Question) -> Answer:
        """See `Answers`. Raises: RunError for a request that the record does not hold, with the first field
        in which it differs."""
        found = self.record.rows(
            "SELECT response, retries, seconds FROM llm_calls WHERE request_hash = ? AND n = ?",
            question.hash,
            question.n,
        )
        if not found:
            raise RunError(self._difference(question))
        names = ("calls", "tokens_in", "tokens_out", "held_in", "held_out", "forwards")
        asked = f"request {question.n}"
        [spend] = self.record.rows(
            f"SELECT {', '.join(names)} FROM spend WHERE what = ? OR what LIKE ?", asked, f"last {asked}:%"
        )
        [row] = found
        return Answer(json.loads(row["response"]), Spend(**spend), row["retries"], row["seconds"])

    def ended(self, n: int) -> str | None:
        """Why the record has no request n; None where it has, or broke off there."""
        if self.record.value("SELECT 1 FROM llm_calls WHERE n = ?", n):
            return None
        found = self.record.value("SELECT stop_reason FROM sessions")
        return None if found is None else str(found)

    def _difference(self, question: Question) -> str:
        recorded = self.record.value("SELECT request FROM llm_calls WHERE n = ?", question.n)
        if recorded is None:  # it was killed there, or its server gave up
            return f"the record has no answer to request {question.n}: it ended before, so that is all of it"
        path, old, new = first_difference(json.loads(recorded), question.request)
        return (
            f"request {question.n} is not the one recorded: {path} was {_shown(old)} and is {_shown(new)}; "
            "replay with the model, tasks and version of the record"
        )


def attempted(ledger: SessionLedger, n: int, but: int = 0) -> Spend:
    """What the attempts at a request took, all but one: one that a kill or a broken connection cut off may
    have been paid for."""
    rows = ledger.rows("SELECT * FROM attempts WHERE n = ? AND attempt <> ?", n, but)
    unseen = [row for row in rows if row["state"] != "failed"]
    held = {name: sum(row[name] for row in unseen) for name in ("held_in", "held_out")}
    return Spend(calls=len(rows), **held)


def answered(usage: tuple[int, int] | None, most_in: int, most_out: int) -> Spend:
    """What a request with an answer took; at most what it can have, where the server does not say."""
    if usage is None:
        return Spend(calls=1, held_in=most_in, held_out=most_out)
    return Spend(calls=1, tokens_in=usage[0], tokens_out=usage[1])


def over_with(account: Account, text: str, most_out: int, times: int = 1) -> str | None:
    """The limit that so many requests more would overshoot; None where they fit. No tokenizer makes more
    tokens of a text than it has bytes."""
    most_in = len(text.encode())
    tokens = {"prompt_tokens": times * most_in, "completion_tokens": times * most_out}
    return account.over(calls=times, money=times * account.money(most_in, most_out), **tokens)


def first_difference(old: Any, new: Any, path: str = "the request") -> tuple[str, Any, Any]:
    """Path of the first place in which two JSON values differ, and both values there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                return first_difference(old.get(name), new.get(name), f"{path}.{name}")
    if isinstance(old, list) and isinstance(new, list):
        for place in range(max(len(old), len(new))):
            pair = [each[place] if place < len(each) else None for each in (old, new)]
            if pair[0] != pair[1]:
                return first_difference(pair[0], pair[1], f"{path}[{place}]")
    return path, old, new


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def answers_for(
    options: SessionOptions, instrument: Any, ledger: SessionLedger, record: SessionLedger | None
) -> Answers:
    """Who answers a session: its record, a server, or its policy. Raises: Refused where none can be had."""
    if record is not None:
        return FromRecord(record)
    if options.policy != "llm":
        return FromPolicy(Offline(options.policy, instrument, options))
    return FromServer(server_of(options.llm), ledger, options)


def server_of(llm: str | None) -> ChatCompletions:
    """The server that has a language model. Raises: Refused where no model or server is named."""
    if not llm:
        raise Refused("No language model is named; give llm its name, or set INTERPCORE_LLM_MODEL.")
    return ChatCompletions.of_environment()
