"""`interpcore agent`: a policy asks for runs, the harness decides what they show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interpcore.agent.options import OFFLINE, SessionOptions
from interpcore.cli.extras import require
from interpcore.cli.study import ModelName, Out, Quiet, Workers, add, load, read_options, show_and_end
from interpcore.cli.tables import in_forms, show_report
from interpcore.runs.experiment import Experiment, Report

if TYPE_CHECKING:
    from interpcore.agent.session import Session
    from interpcore.runs import RunCard

KINDS = ("single", "redundant", "conjunction", "one_task", "order", "decoy", "null")
app = typer.Typer(
    help="An agent under rules that it cannot bend: budgets, typed claims, confirmation on other items.",
    no_args_is_help=True,
)
RUN = Experiment(
    name="agent run",
    sentence="Let a policy run plans on tasks within a budget, and state typed claims, which are tested on "
    "items that it never saw. The default policy needs no network; llm asks the server of OPENAI_BASE_URL.",
    example="interpcore agent run --model tiny --task facts --policy greedy-delete --budget forwards=2000000 "
    "--out runs/agent",
    options=SessionOptions,
    opens="interpcore.cli.agent:open_run",
    extra="agent",
    then=("interpcore agent replay OUT --model MODEL --out OUT-again",),
)
add(app, RUN)


def open_run(
    model: Any,
    out: Path,
    options: SessionOptions,
    *,
    command: str | None = None,
    replay: Any = None,
    **how: Any,
) -> Session:
    """A session on a model, with layer surgery as its instrument."""
    from interpcore.agent.session import open_session
    from interpcore.cli.agent_instrument import PlansOnTasks, read_tasks
    from interpcore.cli.agent_tools import own_tools, study_tools
    from interpcore.cli.verify import moved
    from interpcore.model.card import run_card

    items = 2 * max(options.items, options.confirm_items) + 60  # halves by id are never quite equal
    instrument = PlansOnTasks(model, read_tasks(options.tasks_file, options.tasks, items))
    studies = study_tools(options.experiments, moved(options.data), instrument)
    tools: list[Any] = [*own_tools(instrument), *studies]
    card = run_card(model, command=command, sources=options.circumstances())
    return open_session(instrument, out, options, card, model=model, replay=replay, tools=tools, **how)


@app.command()
@in_forms
def replay(
    record: Annotated[Path, typer.Argument(help="The folder of a session.")],
    out: Out,
    model: ModelName = "tiny",
    quiet: Quiet = False,
) -> None:
    """Give a session's recorded answers again, without a server: runs are made anew, and the report must be
    the same byte for byte.

    Example: interpcore agent replay runs/agent --model tiny --out runs/again
    """
    from contextlib import closing

    from interpcore.agent.ledger import FILE, SessionLedger
    from interpcore.errors import Refused, RunError
    from interpcore.runs import read_bytes, read_card
    from interpcore.runs.options import declared

    require("agent")
    card = read_card(record)
    if not {"tasks", "policy", "instrument"} <= set(card.arguments):
        raise Refused(f"{record} holds no session of an agent; name the folder of an agent run.")
    if out.resolve() == record.resolve():
        raise Refused(f"{out} is the session itself; give --out another folder.")
    said = {**card.arguments, **{n: card.sources[n] for n in ("data", "tasks_file") if n in card.sources}}
    names = {each.name for each in declared(SessionOptions)} - {"tasks"}
    given = {name: value for name, value in said.items() if name in names}
    options = SessionOptions.from_json({**given, "tasks": list(said["tasks"])})
    file = record / "artifacts" / FILE
    read_bytes(file)  # says where it is missing
    with closing(SessionLedger(file, read_only=True)) as ledger:
        loaded = load(model)
        _check_recorded(card, loaded)
        with open_run(loaded, out, options, replay=ledger, progress=not quiet) as session:
            _check_tasks(card, session)
            session.run()
            report = session.report()
    show_report(report, [f"interpcore show {out}"])
    for name in ("report.md", "report.html"):
        if read_bytes(record / "artifacts" / name) != read_bytes(out / "artifacts" / name):
            raise RunError(f"{out / 'artifacts' / name} is not the same as the record's; compare the two.")


def _check_recorded(card: RunCard, model: Any) -> None:
    """Refuse a model with other weights than the session's."""
    from interpcore.errors import RunError
    from interpcore.model.weights import model_hash
    from interpcore.runs import same_weights

    if not same_weights(str(card.weights), model_hash(model)):
        raise RunError(
            f"{model.spec.short_name} is not the one recorded, which is {card.model} with other weights; "
            "replay with the model of the record."
        )


def _check_tasks(card: RunCard, session: Session) -> None:
    """Refuse tasks with other items than the session's."""
    from interpcore.errors import Refused

    assert session.artifacts is not None
    recorded, now = (each.arguments["tasks"] for each in (card, session.artifacts.card))
    if others := [name for name, key in recorded.items() if now.get(name) != key]:
        where = card.sources.get("tasks_file", "generated")
        raise Refused(
            f"The items of {', '.join(others)} are not those recorded; put back what {where} was, and replay."
        )


@app.command()
@in_forms
def bench(
    out: Out,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(OFFLINE)}, llm; all but llm.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help=f"What is planted, of {', '.join(KINDS)}; all.")
    ] = None,
    models: Annotated[int, typer.Option(min=1, help="Models of each kind.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Number of the first model.")] = 0,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Score policies on models whose answer is planted: precision and recall of their claims, and the cost.

    Example: interpcore agent bench --policy greedy-delete,bisect --models 20 --out runs/bench
    """
    require("agent")
    from interpcore.agent.bench import BenchOptions
    from interpcore.agent.bench import bench as run_bench
    from interpcore.cli.agent_instrument import instrument_of

    given = {"models": models, "seed": seed, "policies": policy, "kinds": kind}
    options = read_options(BenchOptions, given)
    found = run_bench(instrument_of, options, out, workers=workers, progress=not quiet)
    shown = (
        "policy",
        "kind",
        "models",
        "claims",
        "confirmed",
        "false",
        "precision",
        "precision_low",
        "recall",
    )
    more = ("recall_low", "stated_precision", "holds", "forwards", "per_true")
    then = ["interpcore agent run --out RUN", f"interpcore show {out}"]
    show_and_end(Report(found.table, notes=found.notes, shown=(*shown, *more)), then=then)
