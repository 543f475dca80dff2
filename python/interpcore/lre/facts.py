"""What there is to study: statistics of the relations, and which of their facts the model knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interpcore.data.relation_filters import disambiguating, subject_tokens
from interpcore.errors import Refused
from interpcore.lre.known import answered, drawn_answers
from interpcore.lre.options import Known
from interpcore.lre.shared import SharedOperators
from interpcore.lre.tables import INTERVALS
from interpcore.lre.trial import reason
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, new_figure, save_figure
from interpcore.stats import mean_over_clusters

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

STATISTICS = (
    "facts, subjects, objects: distinct ones; form: which side repeats; disambiguating: another relation "
    "here has the same domain and range.",
    "subject_tokens, object_tokens: mean over facts, under the model's tokenizer, where the template and "
    "other text put them; one_token_subjects, one_token_objects: shares of facts.",
    "first_tokens: distinct first tokens of the objects, over the objects: 1 where the first token tells all "
    "objects apart.",
)
SHOWN = ("relation", "kind", "form", "facts", "objects", "subject_tokens", "object_tokens", "first_tokens")
KNOWN = (
    "known: share of facts whose object the model's top token begins in every draw; sometimes, never: in "
    "some and in none.",
    "tables/known.csv lists every fact, with what the model said in each draw.",
)


def statistics_cell(study: SharedOperators, relation: str) -> dict[str, Any]:
    """One cell: what a relation is, counted with the model's tokenizer."""
    given, tokenizer = study.relations[relation], study.model.tokenizer
    template = given.prompt_templates[study.options.template]
    facts = given.samples
    subjects = [subject_tokens(tokenizer, template, s.subject) for s in facts]
    tokens = dict(zip(given.objects, study.answers.tokens(given.objects), strict=True))
    objects = [len(tokens[s.object]) for s in facts]
    return {
        "relation": relation,
        "kind": given.relation_type,
        "domain": given.domain_name,
        "range": given.range_name,
        "form": given.fn_type if facts else "",
        "symmetric": given.symmetric,
        "disambiguating": relation in disambiguating(study.relations.values()),
        "templates": len(given.prompt_templates),
        "zero_shot_templates": len(given.prompt_templates_zs),
        "facts": len(facts),
        "subjects": len({s.subject for s in facts}),
        "objects": len(tokens),
        "subject_tokens": _mean(subjects),
        "object_tokens": _mean(objects),
        "one_token_subjects": _mean([n == 1 for n in subjects]),
        "one_token_objects": _mean([n == 1 for n in objects]),
        "first_tokens": len({t[0] for t in tokens.values()}) / max(1, len(tokens)),
    }


def statistics(study: Any) -> Report:
    """Statistics of every relation."""
    import pandas as pd

    grid = [{"relation": name} for name in study.relations]
    table = pd.DataFrame([row.result for row in study.sweep(statistics_cell, grid, on_error="raise")])
    files = write_frame(study.artifacts.artifact("tables/data"), table)
    figure, panels = new_figure(10, 1.4 + 0.3 * len(table), panels=2)
    place = pd.Series(range(len(table)))
    for panel, names in zip(
        panels,
        (("facts", "objects"), ("one_token_subjects", "one_token_objects", "first_tokens")),
        strict=True,
    ):
        height = 0.8 / len(names)
        for i, name in enumerate(names):
            panel.barh(place + (i - (len(names) - 1) / 2) * height, table[name], height, label=name)
        panel.set_yticks(place, table.relation if panel is panels[0] else [""] * len(table))
        panel.invert_yaxis()
        panel.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    panels[0].set(xscale="log", xlim=(1, None), xlabel="number")
    panels[1].set(xlim=(0, 1.02), xlabel="share")
    said = caption(
        model=str(study.artifacts.card.model),
        data=f"{len(table)} relations, counted with the model's tokenizer",
        n=f"{int(table.facts.sum())} facts",
    )
    drawn = save_figure(study.artifacts.artifact("figures/data"), figure, said)
    return Report(table, (*files, *drawn), STATISTICS, shown=SHOWN)


def known_cell(study: SharedOperators, relation: str, shown: int, draws: int) -> dict[str, Any]:
    """One cell: what the model says of every fact of a relation, in every draw of examples."""
    seed = study.trial_seed(relation, 0) % 2**31
    record: dict[str, Any] = {"relation": relation, "kind": study.relations[relation].relation_type}
    try:
        given, template = study.given(relation), study.options.template
        top = drawn_answers(study.model, given, examples=shown, draws=draws, template=template, seed=seed)
    except Refused as error:
        return record | {"facts": [], "reason": reason(relation, error)}
    right = answered(study.answers, given, top)
    facts = [
        {
            "subject": sample.subject,
            "object": sample.object,
            "right": int(right[i].sum()),
            "said": " | ".join(study.answers.text(t) for t in top[i].tolist()),
        }
        for i, sample in enumerate(given.samples)
    ]
    return record | {"facts": facts, "reason": ""}


def known(study: Any, asked: Known) -> Report:
    """Which facts of every relation the model knows."""
    import pandas as pd

    how = {"shown": asked.shown, "draws": asked.draws}
    grid = [{"relation": name, **how} for name in study.relations]
    results: list[Any] = [row.result for row in study.sweep(known_cell, grid, on_error="raise")]
    left_out = tuple(f"Left out: {r['reason']}" for r in results if r["reason"])
    done = [result for result in results if result["facts"]]
    if not done:
        return Report(pd.DataFrame(), (), (*KNOWN, *left_out), ("no relation has enough facts to show",))
    facts = pd.DataFrame(
        [
            {"relation": r["relation"], **fact, "draws": asked.draws, "known": fact["right"] == asked.draws}
            for r in done
            for fact in r["facts"]
        ]
    )
    table = pd.DataFrame([_counted(result, asked.draws) for result in done])
    files = (
        *write_frame(study.artifacts.artifact("tables/known"), facts),
        *write_frame(study.artifacts.artifact("tables/known-relations"), table),
        *_draw_known(study, table, asked),
    )
    return Report(table, files, (*KNOWN, INTERVALS.split(". ")[0] + ".", *left_out))


def _counted(result: dict[str, Any], draws: int) -> dict[str, Any]:
    facts = result["facts"]
    share = mean_over_clusters([float(f["right"] == draws) for f in facts], [f["subject"] for f in facts])
    return {
        "relation": result["relation"],
        "kind": result["kind"],
        "facts": len(facts),
        "known": share.value,
        "known_low": share.low,
        "known_high": share.high,
        "sometimes": _mean([0 < f["right"] < draws for f in facts]),
        "never": _mean([f["right"] == 0 for f in facts]),
    }


def _draw_known(study: Any, table: pd.DataFrame, asked: Known) -> tuple[Path, ...]:
    figure, [axes] = new_figure(7, 1.6 + 0.3 * len(table))
    place, left = range(len(table)), table.known * 0
    colours = {"known": "#3b6ea8", "sometimes": "#a9c3de", "never": "#dddddd"}
    for name, colour in colours.items():
        axes.barh(place, table[name], left=left, color=colour, height=0.65, label=name)
        left = left + table[name]
    errors = [(table.known - table.known_low).clip(lower=0), (table.known_high - table.known).clip(lower=0)]
    axes.errorbar(table.known, place, xerr=errors, fmt="none", ecolor="#222222", capsize=2, lw=1)
    axes.set_yticks(place, [f"{r.relation} ({r.facts})" for r in table.itertuples()])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of facts")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    said = caption(
        model=str(study.artifacts.card.model),
        data=f"{len(table)} relations, {asked.draws} draws of {asked.shown} examples",
        n=f"{int(table.facts.sum())} facts",
        note="known: right in every draw, with its 95% interval over subjects.",
    )
    return save_figure(study.artifacts.artifact("figures/known"), figure, said)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
