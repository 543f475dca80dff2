"""Many plans on the same prompts: what plans agree on is run once, and what differs as rows of one batch.

Plans are followed as a tree over their calls. A node is a beginning that some plans share, with the streams
after it. Of all nodes, those that wait for the earliest block run next, together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.block import Block
from interpcore.model.call import RESID, Call
from interpcore.model.context import Context
from interpcore.model.decoder import Model, Module
from interpcore.model.layout import Layout
from interpcore.model.plan import Plan
from interpcore.model.prompts import read_prompts
from interpcore.model.state import State

TOKENS_AT_ONCE = 8192
"""Tokens that one block call takes at most on a device; bounds memory."""
TOKENS_IN_CACHE = 1024
"""The same on a CPU, whose cache then holds what a block makes of them."""


@dataclass(frozen=True, eq=False)
class _Node(ShortRepr):
    """A beginning that some plans share.

    Args:
        plans: their numbers.
        length: calls of the beginning.
        streams: after it, each [batch, position, d_model].
    """

    plans: Sequence[int]
    length: int
    streams: Mapping[str, Tensor]


@torch.no_grad()
def run_plans(
    model: Model,
    tokens: Tensor,
    attention_mask: Tensor | None,
    plans: Sequence[Plan],
    *,
    tokens_at_once: int | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Run the same prompts under many plans over one model's weights.

    Args:
        model: the decoder; its own plan does not matter.
        tokens, attention_mask: as in `Model.forward`.
        plans: what to run; equal ones are run once.
        tokens_at_once: how many tokens a block takes at most; None for what suits the device.
    Yields: numbers of the plans that this is the result of, and their resid[D] [batch, position, d_model],
        real tokens first in each row; plans in no particular order.
    Raises: Refused as `Model.forward`, and for a plan that the model cannot run.
    """
    if not isinstance(model, Model):
        raise Refused("Other plans need a model with hand-written blocks, which the generic adapter lacks.")
    modules = dict(model.modules)
    for plan in dict.fromkeys(plans):
        modules |= model.with_plan(plan).modules
    layout, packed = read_prompts(tokens, attention_mask, None, model.spec, model.device)
    most = tokens_at_once or (TOKENS_IN_CACHE if model.device.type == "cpu" else TOKENS_AT_ONCE)
    work = _Work(model, modules, layout, max(1, most // layout.n_new))
    resid = model.embed(packed, work.context(layout.batch))
    waiting: dict[Call, list[_Node]] = defaultdict(list)
    ready = [_Node(range(len(plans)), 0, {RESID: resid})]
    order = {name: place for place, name in enumerate(modules)}
    while ready or waiting:
        for node in ready:
            done = []
            branches: dict[Call, list[int]] = defaultdict(list)
            for number in node.plans:
                calls = plans[number].calls
                if len(calls) == node.length:
                    done.append(number)
                else:
                    branches[replace(calls[node.length], slot=None)].append(number)
            if done:
                yield done, node.streams[RESID]
            for call, numbers in branches.items():
                waiting[call].append(replace(node, plans=numbers))
        if not waiting:
            return
        call = min(waiting, key=lambda call: order[call.module])
        ready = work.run(call, waiting.pop(call))


@dataclass(frozen=True, eq=False)
class _Work:
    """What all calls share.

    Args:
        model: the decoder.
        modules: of all plans.
        layout: of the prompts.
        rows: rows that a block takes at most.
    """

    model: Model
    modules: Mapping[str, Module]
    layout: Layout
    rows: int

    def context(self, rows: int) -> Context:
        """For some rows of the prompts, in their order; lengths do not matter inside a block."""
        layout = Layout(
            torch.zeros(rows, dtype=torch.int64), self._lengths(rows), None, 0, self.layout.device
        )
        return Context(layout, plan=self.model.plan, absent=self.model.spec.absent)

    def _lengths(self, rows: int) -> Tensor:
        return torch.full((rows,), self.layout.n_new)

    def run(self, call: Call, nodes: Sequence[_Node]) -> list[_Node]:
        """The nodes after one more call."""
        module = self.modules[call.module]
        if isinstance(module, Block):
            outs = self._run_block(module, [node.streams[call.reads[0]] for node in nodes])
        elif isinstance(module, State):
            outs = [module(node.streams[call.reads[0]], self.layout) for node in nodes]
        else:
            outs = [module(*(node.streams[name] for name in call.reads)) for node in nodes]
        return [
            replace(node, length=node.length + 1, streams={**node.streams, **dict.fromkeys(call.writes, out)})
            for node, out in zip(nodes, outs, strict=True)
        ]

    def _run_block(self, block: Block, streams: Sequence[Tensor]) -> Sequence[Tensor]:
        """The block on every stream [batch, position, d_model], as many rows at once as fit."""
        rows = torch.cat(list(streams)) if len(streams) > 1 else streams[0]
        parts = rows.split(-(-len(rows) // -(-len(rows) // self.rows)))
        outs = [block(part, self.context(len(part)), 0, 0, None) for part in parts]
        return (torch.cat(outs) if len(outs) > 1 else outs[0]).split(self.layout.batch)
