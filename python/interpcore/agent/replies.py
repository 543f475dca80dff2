"""Answers of servers, which differ: read into one form, with nothing taken for granted."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A tool that a policy calls.

    Attributes:
        id: what the tool's message answers; unique in the session.
        name: of the tool.
        arguments: JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """What a policy answered.

    Attributes:
        content: its text, if any.
        calls: tools to call, in order.
        usage: (prompt, completion) tokens; None where the server does not say.
        cut: it ended at its limit of tokens, so that the last arguments may have no end.
    """

    content: str | None
    calls: tuple[ToolCall, ...]
    usage: tuple[int, int] | None
    cut: bool

    @property
    def message(self) -> dict[str, Any]:
        """The assistant message."""
        said: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.calls:
            said["tool_calls"] = [
                {
                    "id": c.id,
                    "type": "function",
                    "function": {"name": c.name, "arguments": c.arguments},
                }
                for c in self.calls
            ]
        return said


def read_reply(response: Mapping[str, Any], turn: int, used: Collection[str] = ()) -> Reply:
    """Read a chat completion. What is missing or of another kind is taken as absent.

    Args:
        response: the answer's body.
        turn: number of the message, of which ids are made where a server sends none, or one twice.
        used: ids of earlier calls.
    """
    choices = response.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    content = message.get("content") or message.get("refusal")
    listed = message.get("tool_calls")
    given = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    cut = choice.get("finish_reason") == "length"
    calls: list[ToolCall] = []
    taken = set(used)
    for number, each in enumerate(given):
        function = each.get("function")
        function = function if isinstance(function, dict) else {}
        name, own = function.get("name"), each.get("id")
        if not isinstance(own, str) or not own or own in taken:
            own = f"call_{turn}_{number}"
        taken.add(own)
        name = name if isinstance(name, str) and name else "unnamed"
        calls.append(ToolCall(own, name, _arguments(function.get("arguments"))))
    content = content if isinstance(content, str) else None
    return Reply(content, tuple(calls), _usage(response.get("usage")), cut)


def carried(message: dict[str, Any]) -> dict[str, Any]:
    """A message as it goes back in a request: unchanged, but with arguments that are no JSON wrapped, as some
    servers read them again and refuse the whole request."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_json(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _as_json(arguments: str) -> str:
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return json.dumps({"no_json": arguments})
    return arguments


def _arguments(given: Any) -> str:
    """A call's arguments as the text that they should be: JSON."""
    if isinstance(given, str):
        return given.strip() or "{}"
    return json.dumps({} if given is None else given)


def _usage(given: Any) -> tuple[int, int] | None:
    if not isinstance(given, dict):
        return None
    counts = [given.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return None
    return counts[0], counts[1]  # type: ignore[return-value]  # whole by now
