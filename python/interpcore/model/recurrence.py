"""Depth-recurrent models: how many steps their plan makes, and from which initial state.

A plan reads prelude, initial state, (adapter, core) x steps, norm, coda. Which state that is stands in the
plan by name ("state_zero", "state_seed_0", "state_given_5f1c..."), so that caches, cards and workers, which
know plans, know it too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.call import RESID, Call
from interpcore.model.plan import Plan
from interpcore.model.state import ConstantState, DrawnState, GivenState, State

ZERO = "state_zero"
GIVEN = "state_given_"
INPUT = "input"  # the stream that every step rereads


@dataclass(frozen=True)
class Recurrence:
    """What the plans of a depth-recurrent model have in common.

    Args:
        prelude, core, coda: blocks before, in and after the recurrence (groups of these names).
        std: standard deviation from which an initial state's entries are drawn.
    """

    prelude: int
    core: int
    coda: int
    std: float

    def plan(self, steps: int, state: str = "state_seed_0") -> Plan:
        """The plan of so many steps from the initial state of that name.

        Raises: Refused for less than one step.
        """
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise Refused(f"A recurrence makes at least 1 step; got {steps!r}.")
        before = [Call(f"prelude.{i}") for i in range(self.prelude)]
        before[-1] = replace(before[-1], writes=(INPUT,))
        step = [Call("adapter", "adapter", reads=(RESID, INPUT))]
        step += [Call(f"core.{i}") for i in range(self.core)]
        after = [Call("core_norm", "norm"), *(Call(f"coda.{i}") for i in range(self.coda))]
        return Plan((*before, Call(state, "adapter", reads=(INPUT,)), *step * steps, *after))

    def with_steps(self, plan: Plan, steps: int) -> Plan:
        """A plan of this recurrence with another number of steps, from the same initial state.

        Raises: Refused for less than one step, or a plan that was edited otherwise.
        """
        state = state_of(plan)
        if plan != self.plan(max(1, steps_of(plan)), state):
            raise Refused(
                f"The plan {plan} is not this model's recurrence as it stands; set the steps first, then "
                "edit the plan."
            )
        return self.plan(steps, state)

    def state(self, given: int | Tensor | None, like: Tensor) -> tuple[str, State]:
        """An initial state with its name in plans.

        Args:
            given: a seed, a tensor, or None for zeros, as in `Model.with_state`.
            like: of the model's width, dtype and device [..., d_model].
        Raises: Refused for a negative seed, and a state of another shape or that is not finite.
        """
        d = like.shape[-1]
        if given is None:
            return ZERO, ConstantState(like.new_zeros(d))
        if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
            return f"state_seed_{given}", DrawnState(given, self.std)
        if not isinstance(given, Tensor):
            raise Refused(f"An initial state is a seed from 0, a tensor, or None for zeros; got {given!r}.")
        if given.dim() not in (1, 2, 3) or given.shape[-1] != d or not given.numel():
            raise Refused(
                f"An initial state is [{d}], [position, {d}] or [rows, position, {d}]; got shape "
                f"{list(given.shape)}."
            )
        if not given.is_floating_point() or not bool(given.isfinite().all()):
            raise Refused("An initial state holds finite floating-point numbers; this one does not.")
        values = given.to(like.device, like.dtype)
        digest = hashlib.sha256(values.detach().double().cpu().numpy().tobytes())
        digest.update(repr(list(values.shape)).encode())
        name = f"{GIVEN}{digest.hexdigest()[:12]}"
        if values.dim() == 1:
            return name, ConstantState(values)
        return name, GivenState(values if values.dim() == 3 else values[None])

    def made(self, plan: Plan, modules: Mapping[str, Any]) -> dict[str, State]:
        """The drawn states that a plan names and the modules lack."""
        names = sorted({call.module for call in plan.calls} - set(modules))
        seeds = {name: re.fullmatch(r"state_seed_(\d+)", name) for name in names}
        return {name: DrawnState(int(seed[1]), self.std) for name, seed in seeds.items() if seed}


def steps_of(plan: Plan) -> int:
    """Recurrent steps that a plan makes: calls of its adapter."""
    return sum(call.module == "adapter" for call in plan.calls)


def state_of(plan: Plan) -> str:
    """Name of the initial state that a plan starts from, "" for none."""
    return next((call.module for call in plan.calls if _is_state(call)), "")


def started_from(plan: Plan, state: str) -> Plan:
    """The plan with the initial state of that name."""
    return Plan(tuple(replace(call, module=state) if _is_state(call) else call for call in plan.calls))


def _is_state(call: Call) -> bool:
    return names_state(call.module)


def names_state(module: str, given: bool = False) -> bool:
    """Whether a module's name says what initial state it is; with `given`, one that was given as a tensor."""
    return module.startswith(GIVEN if given else "state_")
