"""What an agent may call beside plans on tasks: layer surgery's token tables and stand-ins, and the declared
experiments of every family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interpcore.agent.studies import ROWS, StudyTool
from interpcore.agent.tool import Result, Tool, afford, short
from interpcore.cli.extras import require
from interpcore.errors import Refused
from interpcore.runs.options import Options, option
from interpcore.surgery.experiments import STAND_IN

if TYPE_CHECKING:
    from interpcore.agent.budget import Account
    from interpcore.agent.lab import Lab
    from interpcore.cli.agent_instrument import PlansOnTasks
    from interpcore.runs.experiment import Experiment

# They need a file inside a run's folder, write elsewhere, or run tasks of a library that fetches them.
LEFT_OUT = ("circuits evaluate", "circuits figures", "neurons cache", "neurons view", "steering evaluate")
DOCUMENTS = {"fit": 400, "choose": 100, "test": 200, "draws": 400}  # of the tiny world, for stand-ins
METHODS = ("identity", "mean shift", "ridge", "mean Jacobian", "low rank 16", "shuffled", "constant")


@dataclass(frozen=True, kw_only=True)
class Tokens(Options):
    """Arguments of `tokens`."""

    run: str = option(..., "Id of a run.")
    item: str | None = option(None, "Id of one of its items; the first unless given.")
    position: int = option(
        -1, "Token after which the next one is compared; negative from the prompt's last token."
    )
    k: int = option(5, "Tokens that gain, and tokens that lose.", least=1, most=20)


@dataclass(frozen=True, kw_only=True)
class LinearGuess(Options):
    """Arguments of `linear_guess`."""

    a: int = option(..., "First block that is stood in for.", least=0)
    b: int = option(..., "One past the last.", least=1)
    method: str | None = option(None, "How; all unless given.", choices=METHODS)


def own_tools(instrument: PlansOnTasks) -> tuple[Tool, ...]:
    """`tokens` and `linear_guess` on the model of an instrument, and `rows` of studies."""

    def tokens(lab: Lab, account: Account, asked: Tokens) -> Result:
        run = lab.stored(asked.run)
        if run is None:
            raise Refused(f"run is {asked.run!r}, which is no run of this session; query lists them.")
        item = run.items[0] if asked.item is None else asked.item
        if item not in run.items:
            raise Refused(f"item is {item!r}, which run {run.id} does not hold; it holds {run.items[0]}, ...")
        forwards = instrument.forwards(run.plan, run.task, [item])
        afford(account, forwards)
        prompt, found = instrument.changed_tokens(run.plan, run.task, item, asked.position, asked.k)
        lists = {name: [[t, *map(short, v)] for t, *v in found[name]] for name in ("more", "less")}
        said = {"task": run.task, "item": item, "prompt": prompt, "token": found["token"]}
        units = {
            "kl": "nats, KL(intact || plan) of the next token",
            "more, less": "token, change of log p, p intact, p plan",
        }
        return {"ids": {"run": run.id}, "units": units, **said, "kl": short(found["kl"]), **lists}, forwards

    def linear_guess(lab: Lab, account: Account, asked: LinearGuess) -> Result:
        if not asked.a < asked.b <= instrument.blocks:
            raise Refused(
                f"a is {asked.a} and b {asked.b}; this model has blocks 0 to {instrument.blocks - 1}, and b "
                "is one past the last."
            )
        study = StudyTool(STAND_IN, instrument.model, {})
        said, forwards = study.result(lab, account, {"span": [f"{asked.a}-{asked.b - 1}"], **DOCUMENTS})
        rows = [row for row in said["rows"] if asked.method in (None, row["method"])]
        units = {"kl": "nats per token, KL(intact || stand-in), held-out documents", "fvu": "share"}
        return said | {"units": units, "rows": rows}, forwards

    return (
        Tool(
            "tokens",
            "What becomes more and less likely at a token of a run's item, against the intact plan.",
            Tokens,
            tokens,
        ),
        Tool(
            "linear_guess",
            "Affine maps in place of blocks a to b - 1, on held-out documents, with controls.",
            LinearGuess,
            linear_guess,
        ),
        ROWS,
    )


def offered() -> dict[str, Experiment]:
    """The experiments that an agent may be given, by name."""
    from interpcore.review.experiments import experiments

    return {
        each.name: each
        for each in experiments()
        if not each.name.startswith("agent ") and each.name not in LEFT_OUT
    }


def study_tools(
    names: Sequence[str], data: Mapping[str, str], instrument: PlansOnTasks
) -> tuple[StudyTool, ...]:
    """The experiments that a session names, as tools.

    Args:
        names: of experiments, or "all".
        data: the owner's files, by the argument that takes them.
        instrument: whose model they run on; layer surgery's read the items that it lets policies see, none
            of those kept back for confirming.
    Raises: Refused for a name or argument that is not there.
    """
    known = offered()
    wanted = list(known) if list(names) == ["all"] else list(dict.fromkeys(names))
    for name in wanted:
        if name not in known:
            raise Refused(
                f"There is no experiment {name!r} for an agent; there are {', '.join(known)}, or all."
            )
    tools, model = [], instrument.model
    for name in wanted:
        if (extra := known[name].extra) is not None:
            require(extra)
        made = {"tasks": instrument.explored} if name.startswith("surgery ") else {}
        takes = {each.name for each in StudyTool(known[name], model, {}).fields if each.outside} - set(made)
        tools.append(StudyTool(known[name], model, {k: v for k, v in data.items() if k in takes}, made))
    taken = {name for tool in tools for name in tool.data}
    if unused := [name for name in data if name not in taken]:
        raise Refused(f"data names {unused[0]!r}, which is no file that an experiment of this session reads.")
    return tuple(tools)
