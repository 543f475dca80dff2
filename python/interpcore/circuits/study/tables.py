"""Tables of a study, with the published column names where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interpcore.circuits.circuit import Circuit, nested
from interpcore.circuits.graph import GraphError
from interpcore.circuits.methods import method_of
from interpcore.circuits.scores import Scores
from interpcore.circuits.study.agreement import agreement, average_overlap
from interpcore.circuits.study.overlap import overlap_table
from interpcore.circuits.study.published import Recovery

if TYPE_CHECKING:
    import pandas as pd

Rows = Sequence[dict[str, Any]]
PAPER_ORDER = (
    "ioi",
    "greater-than",
    "gender-bias",
    "sva",
    "fact-retrieval-comma",
    "hypernymy-comma",
    "greater-than-price",
    "greater-than-sequence",
)
# What runs of version 0.1.0 called the ends of faithfulness's interval.
OLD_NAMES = {"low": "faithfulness_low", "high": "faithfulness_high"}
# Names that published agreement tables give to methods.
SHORT = {"eap": "vanilla", "eap-ig": "ig"}


def in_paper_order(tasks: Sequence[str]) -> list[str]:
    """Tasks in the order of the published tables, others behind them as they come."""
    known = {name: at for at, name in enumerate(PAPER_ORDER)}
    return sorted(dict.fromkeys(tasks), key=lambda task: known.get(task, len(known)))


def renamed(found: Any) -> Any:
    """A cell's rows under the names of this version."""
    if isinstance(found, list):
        return [renamed(row) for row in found]
    if isinstance(found, dict):
        return {OLD_NAMES.get(key, key): value for key, value in found.items()}
    return found


def pareto_table(rows: Rows) -> pd.DataFrame:
    """One task's metric by requested size: `baseline`, `corrupted_baseline` (every edge corrupted), `edges`,
    and per method the edges kept `edges_<method>` and the metric `loss_<method>` (published name; larger is
    better)."""
    import pandas as pd

    first = rows[0]
    table = {"baseline": first["clean"], "corrupted_baseline": first["ablated"]}
    sizes = sorted({row["requested"] for row in rows})
    columns: dict[str, Any] = {"edges": sizes}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["requested"]: row for row in rows if row["method"] == method}
        name = method_of(method).column
        columns[f"edges_{name}"] = [mine[size]["kept"] for size in sizes]
        columns[f"loss_{name}"] = [mine[size]["value"] for size in sizes]
    return pd.DataFrame({key: [value] * len(sizes) for key, value in table.items()} | columns)


def frame(rows: Rows) -> pd.DataFrame:
    """Rows as a table; of curves: task, on, method, requested, kept, share, nodes, metric, value, clean,
    ablated, faithfulness with `faithfulness_low` and `faithfulness_high` (95%, Fieller's interval over
    pairs), pairs."""
    import pandas as pd

    return pd.DataFrame(list(rows))


def labelled(table: pd.DataFrame, corner: str) -> pd.DataFrame:
    """A square table with its columns' names in front of the rows."""
    table = table.copy()
    table.insert(0, corner, list(table.columns))
    return table


def cross_table(rows: Rows, tasks: Sequence[str], what: str = "value") -> pd.DataFrame:
    """Circuits of a task (columns) measured on a task (rows, in the columns' order); with what="value" also
    `baseline` and `corrupted_baseline`."""
    import pandas as pd

    cell = {(row["on"], row["task"]): row for row in rows}
    table = {task: [cell[on, task][what] for on in tasks] for task in tasks}
    if what == "value":
        table["baseline"] = [cell[on, on]["clean"] for on in tasks]
        table["corrupted_baseline"] = [cell[on, on]["ablated"] for on in tasks]
    return pd.DataFrame(table)


def overlap_tables(circuits: dict[str, Circuit], protocol: str = "default") -> dict[str, pd.DataFrame]:
    """Overlap of all tasks' circuits: `<node|edge>_ious`, `<node|edge>_iou_ps` (hypergeometric) and
    `<node|edge>_overlap` (recall of the row's circuit in the column's)."""
    import pandas as pd

    listed = list(circuits.values())
    return {
        f"{level}_{name}": pd.DataFrame(overlap_table(listed, level, what, protocol), columns=list(circuits))
        for level in ("node", "edge")
        for name, what in (("ious", "iou"), ("iou_ps", "p"), ("overlap", "recall"))
    }


def steps_table(rows: Rows) -> pd.DataFrame:
    """One task by the steps of EAP-IG: `n_edges`, `baseline`, `corrupted_baseline`, then `n_edges_<m>`,
    `results_<m>` with m = "vanilla" for EAP."""
    import pandas as pd

    sizes = sorted({row["requested"] for row in rows})
    table: dict[str, Any] = {
        "n_edges": sizes,
        "baseline": [rows[0]["clean"]] * len(sizes),
        "corrupted_baseline": [rows[0]["ablated"]] * len(sizes),
    }
    for method in dict.fromkeys(row["method"] for row in rows):
        name = steps_name(method)
        mine = {row["requested"]: row for row in rows if row["method"] == method}
        table[f"n_edges_{name}"] = [mine[size]["kept"] for size in sizes]
        table[f"results_{name}"] = [mine[size]["value"] for size in sizes]
    return pd.DataFrame(table)


def steps_name(method: str) -> str:
    """How published tables write a number of steps: "vanilla" for EAP."""
    return "vanilla" if method == "eap" else str(method_of(method).options["steps"])


def agreement_facts(scores: dict[str, dict[str, Scores]]) -> dict[str, float]:
    """Agreement with exact scores by task and method, keys as published: `<task>_<vanilla|ig>` (Pearson of
    |score|), `..._kendall`, `..._kendall_top` (union of both best 400), `..._diff` (mean |difference|),
    `..._sign`.

    Args:
        scores: task -> method -> scores, "exact" among them.
    """
    facts = {}
    for task, by_method in scores.items():
        for method in (m for m in by_method if m != "exact"):
            found = agreement(by_method[method], by_method["exact"])
            key = f"{task}_{SHORT.get(method, method)}"
            facts[key] = found.pearson
            facts[f"{key}_kendall"] = found.kendall
            facts[f"{key}_kendall_top"] = found.kendall_top
            facts[f"{key}_diff"] = found.mean_difference
            facts[f"{key}_sign"] = found.sign
    return facts


def average_overlap_table(scores: dict[str, dict[str, Scores]], depth: int = 400) -> pd.DataFrame:
    """Average overlap of the best edges with the exact best, by `depth`, one column `<task>_<vanilla|ig>`
    each."""
    import pandas as pd

    columns = {
        f"{task}_{SHORT.get(method, method)}": average_overlap(by_method[method], by_method["exact"], depth)
        for task, by_method in scores.items()
        for method in by_method
        if method != "exact"
    }
    depths = range(1, len(next(iter(columns.values()))) + 1)
    return pd.DataFrame({"depth": depths} | {name: values.numpy() for name, values in columns.items()})


def circuit_overlap_tables(
    scores: dict[str, dict[str, Scores]], sizes: Sequence[int], how: str = "greedy"
) -> dict[str, pd.DataFrame]:
    """Node and edge overlap (IoU) of circuits chosen from different scores, by requested size (`depth`), one
    column `<task>_<method>_<method>` per pair of methods, "real" being exact."""
    import pandas as pd

    columns: dict[str, dict[str, list[float]]] = {"node": {}, "edge": {}}
    for task, by_method in scores.items():
        chosen = {m: nested(s, sizes, how) for m, s in by_method.items()}
        for first, second in _pairs_of(list(by_method)):
            name = f"{task}_{method_of(first).column}_{method_of(second).column}"
            for level, tables in columns.items():
                pairs = zip(chosen[first], chosen[second], strict=True)
                tables[name] = [float(overlap_table([a, b], level, "iou")[0, 1]) for a, b in pairs]
    return {level: pd.DataFrame({"depth": list(sizes)} | tables) for level, tables in columns.items()}


def _pairs_of(methods: list[str]) -> list[tuple[str, str]]:
    if "exact" not in methods:
        raise GraphError("Overlap with exact circuits needs exact scores.")
    others = [m for m in methods if m != "exact"]
    between = [(a, b) for i, a in enumerate(others) for b in others[i + 1 :]]
    return [("exact", m) for m in others] + between


def recovery_table(found: dict[str, Recovery]) -> pd.DataFrame:
    """Precision and recall by size: `edges`, then per method `<method>_<node|edge>_<precision|recall>`."""
    import pandas as pd

    table: dict[str, Any] = {"edges": next(iter(found.values())).sizes}
    for method, one in found.items():
        for what in ("node_precision", "node_recall", "edge_precision", "edge_recall"):
            table[f"{method_of(method).column}_{what}"] = getattr(one, what).numpy()
    return pd.DataFrame(table)
