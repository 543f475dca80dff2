"""Chat completions over HTTP, with the standard library: one request, one answer or one error.

Retries and budgets are the session's, so that nothing is paid unseen. The key is in the request's header and
nowhere else: what comes back is cleared of it here, before anybody reads it.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interpcore.errors import Refused, Unavailable
from interpcore.runs.fields import parse_json

MOST_BYTES = 16 << 20  # of an answer
MOST_SECONDS = 60.0  # that a server may ask to be waited for
RETRIED = (408, 409, 425, 429)  # and 500 to 599
HIDDEN = "[key]"
_SHOWN = 300  # characters of a server's message


class ServerError(Unavailable):
    """A request without an answer.

    Attributes:
        again: whether it may be tried again.
        after: seconds that the server asks to wait; None where it does not say.
        paid: whether the server may have worked on it all the same.
    """

    def __init__(self, said: str, *, again: bool, after: float | None = None, paid: bool = False) -> None:
        super().__init__(said)
        self.again, self.after, self.paid = again, after, paid


@dataclass(frozen=True)
class Secret:
    """A key that shows itself to nobody: not in repr, not in what a server echoes."""

    value: str

    def __repr__(self) -> str:
        return HIDDEN

    def hide(self, found: Any) -> Any:
        """A JSON value or text without the key."""
        if isinstance(found, str):
            return found.replace(self.value, HIDDEN) if len(self.value) >= 8 else found
        if isinstance(found, Mapping):
            return {self.hide(name): self.hide(value) for name, value in found.items()}
        return [self.hide(value) for value in found] if isinstance(found, list) else found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another place."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class ChatCompletions:
    """A server that speaks chat completions.

    Args:
        base: its address, with the /v1, such as "http://localhost:8000/v1".
        key: sent as bearer token; "" sends none.
    Raises: Refused for an address that is none, or that holds a password or a query; for a key that cannot
        stand in a header.
    """

    def __init__(self, base: str, key: str = "") -> None:
        parts = urllib.parse.urlsplit(base.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused("The server's address must begin with http:// or https:// and name a host.")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise Refused(
                "The server's address holds a user, password or query; give the plain address, and the key "
                "in OPENAI_API_KEY."
            )
        key = key.strip()
        if not key.isascii() or not (key.isprintable() or not key):
            raise Refused("OPENAI_API_KEY holds characters that no header can hold; set it again.")
        self.host = parts.netloc
        self._address = base.strip().rstrip("/") + "/chat/completions"
        self._key = Secret(key)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        handlers: list[Any] = [_NoRedirect(), *([urllib.request.ProxyHandler({})] if local else [])]
        self._opener = urllib.request.build_opener(*handlers)

    @classmethod
    def of_environment(cls) -> ChatCompletions:
        """The server of OPENAI_BASE_URL, with OPENAI_API_KEY. Raises: Refused where no address is set."""
        base = os.environ.get("OPENAI_BASE_URL", "")
        if not base.strip():
            raise Refused(
                "No server is named; set OPENAI_BASE_URL, such as http://localhost:8000/v1, or choose a "
                "policy that needs none."
            )
        return cls(base, os.environ.get("OPENAI_API_KEY", ""))

    def complete(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """One request, one answer.

        Args:
            request: the body.
            timeout: seconds for each wait on the server.
        Raises: ServerError where there is no answer.
        """
        body = json.dumps(request, sort_keys=True, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key.value:
            headers["Authorization"] = f"Bearer {self._key.value}"
        asked = urllib.request.Request(self._address, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(asked, timeout=timeout) as answer:
                text = _read(answer, time.monotonic() + timeout)
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except urllib.error.URLError as error:
            raise self._broken(error.reason) from None
        except (http.client.HTTPException, OSError) as error:
            raise self._broken(error) from None
        return self._answer(text)

    def _answer(self, text: bytes) -> dict[str, Any]:
        try:
            found = self._key.hide(parse_json(text.decode()))
        except ValueError:
            raise ServerError(
                f"{self.host} answered with what is no JSON: {self._shown(text)}", again=True, paid=True
            ) from None
        if isinstance(found, dict) and found.get("error") and not found.get("choices"):
            said = self._shown(json.dumps(found["error"]).encode())
            raise ServerError(f"{self.host} answered with an error: {said}", again=False, paid=True)
        if not isinstance(found, dict):
            raise ServerError(f"{self.host} answered with no object.", again=True, paid=True)
        return found

    def _refusal(self, error: urllib.error.HTTPError) -> ServerError:
        """A status that is no success. The message is shown, the key never."""
        status = error.code
        try:
            text = error.read(1 << 16)
        except (OSError, http.client.HTTPException):
            text = b""
        finally:
            error.close()
        code, message = _said(text)
        again = (status in RETRIED or status >= 500) and code != "insufficient_quota"
        what = "a redirect, which is not followed" if 300 <= status < 400 else f"status {status}"
        said = f"{self.host} answered with {what}: {self._shown(message.encode()) or error.reason}"
        hint = {401: "; check OPENAI_API_KEY", 404: "; check the address and the model's name"}.get(
            status, ""
        )
        after = _seconds(error.headers.get("Retry-After"))
        return ServerError(f"{said.rstrip('.')}{hint}.", again=again, after=after, paid=status >= 500)

    def _broken(self, reason: Any) -> ServerError:
        """A connection that was not made, or ended early."""
        refused = isinstance(reason, ConnectionRefusedError) or "getaddrinfo" in repr(reason)
        if isinstance(reason, ssl.SSLCertVerificationError):
            said = f"{self.host} has a certificate that cannot be verified"
            return ServerError(f"{said}; check the address.", again=False)
        if isinstance(reason, TimeoutError):
            return ServerError(f"{self.host} gave no answer in time.", again=True, paid=True)
        said = self._shown(str(reason).encode()) or type(reason).__name__
        if refused or type(reason).__name__ == "gaierror":
            return ServerError(f"{self.host} cannot be reached ({said}); is the server up?", again=True)
        return ServerError(f"the connection to {self.host} broke ({said}).", again=True, paid=True)

    def _shown(self, text: bytes) -> str:
        """The beginning of what a server said, on one line, without the key."""
        said = self._key.hide(" ".join(text.decode(errors="replace").split()))
        return said if len(said) <= _SHOWN else said[:_SHOWN] + "..."


def _read(answer: Any, until: float) -> bytes:
    """The whole body; a server that sends it in drops is not waited for longer than one that is silent."""
    parts, size = [], 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise http.client.HTTPException(f"the answer is longer than {MOST_BYTES} bytes")
        if time.monotonic() > until:
            raise TimeoutError
    if (left := answer.length) not in (None, 0):
        raise http.client.IncompleteRead(b"", left)
    return b"".join(parts)


def _said(text: bytes) -> tuple[str, str]:
    """Code and message of an error's body, which may be JSON, plain text or a page."""
    shown = text.decode(errors="replace")
    try:
        found = json.loads(shown)
    except (ValueError, RecursionError):
        return "", shown
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or ""), str(error.get("message") or shown)
    return "", str(error)


def _seconds(header: str | None) -> float | None:
    """What a Retry-After header asks for, in seconds or as a date, within bounds; None where it says
    nothing."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), MOST_SECONDS) if seconds == seconds else None


def backoff(attempt: int, jitter: float, after: float | None) -> float:
    """Seconds to wait before trying again: 0.5 doubled to 8, less up to a quarter by chance; or what the
    server asks for.

    Args:
        attempt: how often it was tried, from 1.
        jitter: from 0 to 1.
        after: what the server asks for.
    """
    return after if after is not None else min(0.5 * 2.0 ** (attempt - 1), 8.0) * (1 - jitter / 4)
