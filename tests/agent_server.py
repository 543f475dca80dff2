"""A scripted chat-completions server on the loopback."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def calls(*asked, **more):
    """A completion that calls tools: (name, arguments) each; arguments as text, or as they are."""
    listed = [
        {"id": f"call_{i}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
        for i, (n, a) in enumerate(asked)
    ]
    return completion({"role": "assistant", "content": None, "tool_calls": listed}, **more)


def completion(message, finish="tool_calls", usage=(100, 20)):
    found = {"id": "x", "object": "chat.completion", "created": 1, "model": "stub"}
    found["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]
    if usage is not None:
        found["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    return found


@dataclass
class Step:
    """One answer: a body (a function of the request, an object, or bytes), and what is wrong with it."""

    body: object = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None  # close after so many bytes, having promised all
    reset: bool = False  # break the connection without a word


@dataclass
class Server:
    script: list
    requests: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    base: str = ""

    def next(self, request):
        self.requests.append(request)
        step = self.script[min(len(self.requests), len(self.script)) - 1]
        return step if isinstance(step, Step) else Step(step)


@contextmanager
def serving(*script):
    server = Server(list(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.headers.append(dict(self.headers))
            step = server.next(request)
            time.sleep(step.delay)
            if step.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()  # with data unread or lingering at 0 it is a reset
                self.close_connection = True
                return
            body = step.body(request) if callable(step.body) else step.body
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(step.status)
            for name, value in {"Content-Type": "application/json", **step.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: step.cut])
            if step.cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *args):
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, address):
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.base = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def results(request):
    """What the tools answered, in order, as a request carries it."""
    return [json.loads(m["content"]) for m in request["messages"] if m["role"] == "tool"]
