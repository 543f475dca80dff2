"""An instrument without a model, whose effects are known, and sessions on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from interpcore.agent.instrument import Task, listed
from interpcore.agent.options import SessionOptions
from interpcore.agent.session import open_session
from interpcore.errors import Refused
from interpcore.runs import RunCard

CARD = RunCard(model="made", weights="0" * 64)


def task(name: str, n: int = 80) -> Task:
    items = tuple(f"{name}-{i}" for i in range(n))
    return Task(name, "made", items, hashlib.sha256(name.encode()).hexdigest())


@dataclass
class Made:
    """Blocks whose loss is what `rise` says of the set that runs, plus noise by item and plan."""

    rise: object  # (task, blocks) -> nats
    blocks: int = 4
    noise: float = 0.0
    tasks: dict = field(default_factory=lambda: {"alpha": task("alpha")})
    metrics: dict = field(default_factory=lambda: {"loss": "nats per answer"})
    identity: dict = field(default_factory=lambda: {"weights": "made"})
    gap: float = 8.0
    measured: list = field(default_factory=list)

    def plan(self, text: str) -> str:
        return listed(self.called(text))

    def called(self, text: str) -> list[int]:
        blocks: list[int] = []
        for part in text.split(",") if text.strip() not in ("", "none") else ():
            first, _, last = part.strip().partition("-")
            if not first.isdigit() or (last and not last.isdigit()):
                raise Refused(f"plan is {text!r}; give blocks such as '0-2, 4'.")
            blocks += range(int(first), int(last or first) + 1)
        if outside := [b for b in blocks if b >= self.blocks]:
            raise Refused(f"plan names block {outside[0]}; there are 0 to {self.blocks - 1}.")
        return blocks

    def forwards(self, plan, task, items) -> int:
        return 5 * len(items) * max(len(self.called(plan)), 1)

    def measure(self, plan, task, items):
        self.measured.append((plan, task, tuple(items)))
        rise, draws = self.rise(task, tuple(self.called(plan))), []
        for item in items:
            seed = int.from_bytes(
                hashlib.sha256(f"{plan} {item} {self.identity}".encode()).digest()[:8], "big"
            )
            draws.append(np.random.default_rng(seed).normal())
        base = [1.0 + int(hashlib.sha256(i.encode()).hexdigest()[:4], 16) / 65536 for i in items]
        loss = [b + rise + self.noise * d for b, d in zip(base, draws, strict=True)]
        return {"loss": loss, "control_loss": [b + self.gap for b in base]}


def only(*needed: int):
    """The task needs exactly these blocks."""
    return lambda task, blocks: 0.0 if set(needed) <= set(blocks) else 5.0


def session(out, instrument, policy="greedy-delete", replay=None, **options):
    return open_session(instrument, out, SessionOptions(policy=policy, **options), CARD, replay=replay)


def finished(out, instrument, policy="greedy-delete", **options):
    """Run a session to its end; gives its report and the rows of its claims."""
    from interpcore.agent.report import claim_rows

    with session(out, instrument, policy, **options) as opened:
        opened.run()
        return opened.report(), claim_rows(opened.ledger)


def tables(ledger):
    """Everything in a ledger but times."""
    found = {}
    for name in ("messages", "llm_calls", "runs", "items", "claims", "notes", "spend"):
        rows = ledger.rows(f"SELECT * FROM {name}")
        found[name] = [{k: v for k, v in row.items() if k not in ("seconds", "source")} for row in rows]
    return found
