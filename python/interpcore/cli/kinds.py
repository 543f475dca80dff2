"""What a file or folder is, told by its content: the reader of its kind reads it whole and says what it
holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from interpcore.cli.record_kinds import card, claims, database, eval_log, eval_logs
from interpcore.cli.tensor_kinds import Found, mib_scores, steering_file, tensor_file, torch_file
from interpcore.errors import InterpcoreError, Refused
from interpcore.runs.artifacts import read_json, read_tensors


def look(name: str, model: str | None = None) -> Found:
    """What a file or folder is and what it holds.

    Args:
        name: its path; or the text of a plan, where `model` says of what.
        model: a model by name, whose tokenizer and blocks answers and plans are read with.
    Raises: InterpcoreError, OSError with what is wrong.
    """
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        if model is not None and not path.suffix:
            return _plan(name, model)
        raise Refused(f"There is no file or folder {name}; to read a plan, say of which --model.")
    if path.read_bytes()[:1] == b"":
        raise Refused(f"{path} is empty.")
    kind = "".join(path.suffixes[-2:]) if path.suffix in (".gz", ".zst") else path.suffix.lower()
    for suffixes, read in _BY_SUFFIX.items():
        if kind in suffixes.split() or path.suffix.lower() in suffixes.split():
            return read(path, model)
    raise Refused(f"{path}: nothing here reads files that end in {path.suffix or 'nothing'}.")


def _folder(path: Path) -> Found:
    from interpcore.runs.folder import is_run

    if is_run(path) or any(is_run(step) for step in path.iterdir() if step.is_dir()):
        return _run(path)
    if (path / "manifest.json").is_file():
        from interpcore.data.tokens import TokenShards

        shards = TokenShards.open(path)
        for start in range(0, shards.n_sequences, 1024):
            shards.sequences(start, min(start + 1024, shards.n_sequences))
        return "token shards", f"{shards.n_sequences} sequences of {shards.context} tokens"
    if (path / "cfg.json").is_file() or (path / "config.yaml").is_file():
        return _dictionaries(path, None)
    if (path / "config.json").is_file():
        return _model(path)
    if any(
        p.name.startswith("importances.") or re.fullmatch(r"[\d.]+\.(json|pt)", p.name)
        for p in path.iterdir()
    ):
        from interpcore.circuits.files import load_mib

        return "MIB's scores or circuits", f"{len(load_mib(path))} files"
    if any(path.glob("*.eval")):
        return eval_logs(path)
    try:
        return _relations(path)
    except InterpcoreError as relations:
        if not any(p.suffix.lower() in (".csv", ".tsv", ".json") for p in path.iterdir()):
            return _documents(path)
        try:
            return _own_pairs(path, None)
        except InterpcoreError as pairs:
            raise Refused(f"As relations: {relations} As tasks: {pairs}") from pairs


def _run(path: Path) -> Found:
    from interpcore.review.experiments import run_cards
    from interpcore.review.shown import state

    said, files = [], 0
    for run in run_cards(path):
        found = state(run)
        cells = f": {found.done} of {found.asked} cells finished" if found.asked else ""
        said.append(f"{found.kind if found.kind != 'a run' else run.name}{cells}")
        for file in sorted((run / "artifacts").rglob("*")):
            if file.suffix == ".safetensors":
                read_tensors(file)
            elif file.suffix == ".parquet":
                _frame(file)
            elif file.suffix == ".json":
                read_json(file)
            files += file.is_file()
    return "run folder" if len(said) == 1 else "study", f"{'; '.join(said)}; {files} files"


def _dictionaries(path: Path, model: str | None) -> Found:
    from interpcore.model.load.dictionaries import read_dictionary_files

    found = read_dictionary_files(path)
    shapes = sorted({str(list(tensors["W_enc"].shape)) for tensors, _ in found if "W_enc" in tensors})
    place = found[0][1].reads or "a site that it does not say"
    return "dictionaries", f"{len(found)}, W_enc {', '.join(shapes)}, the first of {place}"


def _model(path: Path) -> Found:
    from interpcore.model.load.location import check_folder

    check_folder(path)
    config = read_json(path / "config.json")
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise Refused(f"{path / 'config.json'} names no model_type.")
    names = [name for file in sorted(path.glob("*.safetensors")) for name in read_tensors(file)[0]]
    return "model", f"{config['model_type']}, {len(names)} tensors"


def _relations(path: Path, model: str | None = None) -> Found:
    from interpcore.data.relations import load_relations

    found = load_relations(path)
    facts = sum(len(relation.samples) for relation in found)
    names = ", ".join(relation.name for relation in found[:3]) + (", ..." if len(found) > 3 else "")
    return ("relation" if len(found) == 1 else "relations"), f"{names}: {facts} facts"


def _own_pairs(path: Path, model: str | None) -> Found:
    from interpcore.circuits.own import read_own

    tasks = read_own(path)
    said = [
        f"{task.name}: {len(task.texts)} pairs, measured by {task.metric or 'logit_diff'}" for task in tasks
    ]
    if model is not None:
        said = [f"{text}{_as_read(task, model)}" for text, task in zip(said, tasks, strict=True)]
    return "prompt pairs", "; ".join(said)


def _as_read(task: Any, model: str) -> str:
    """What a tokenizer makes of a task's pairs."""
    from interpcore.circuits.options import Options
    from interpcore.circuits.study.study import own_pairs

    pairs = own_pairs(task, _tokenizer(model), Options())
    tokens = "of several tokens" if pairs.pair is not None else "of one token"
    return f", answers {tokens}" + "".join(f". {text}" for text in pairs.left_out)


def _tokenizer(model: str) -> Any:
    from interpcore.model.load.location import locate
    from interpcore.model.load.source import read_tokenizer

    found = read_tokenizer(locate(model), {"trust_remote_code": False})
    if found is None:
        raise Refused(f"{model} has no tokenizer; give a model that has one.")
    return found


def _blocks(model: str) -> int:
    from interpcore.model.load.location import locate

    config = read_json(Path(locate(model).place) / "config.json")
    said = config.get("text_config") or config
    return int(next(said[n] for n in ("num_hidden_layers", "n_layer", "n_layers") if n in said))


def _plan(text: str, model: str) -> Found:
    from interpcore.model.plan import Plan

    plan = Plan.parse(text, Plan.identity(_blocks(model)))
    return "plan", f"{plan.n_calls} block calls: {plan.text}"


def _recipe(path: Path, model: str | None) -> Found:
    from interpcore.model.plan import Plan
    from interpcore.surgery.recipes import read_recipe

    if model is None:
        raise Refused(f"{path}: to read a recipe, say of which --model.")
    return "merge recipe", read_recipe(path, Plan.identity(_blocks(model))).text


def _json(path: Path, model: str | None) -> Found:
    content = read_json(path)
    rows = content if isinstance(content, list) else [content]
    keys = set(rows[0]) if rows and isinstance(rows[0], Mapping) else set()
    for needed, read in _BY_KEYS:
        if needed <= keys:
            return read(path, model)
    if isinstance(content, list) and keys:
        for read in (_questions, _own_pairs):
            try:
                return read(path, model)
            except Refused:
                continue
    raise Refused(
        f"{path} is none of the JSON files that are read here: its fields are "
        f"{', '.join(sorted(keys)[:8]) or 'none'}."
    )


def _graph(path: Path, model: str | None) -> Found:
    from interpcore.circuits.graph_json import load_graph

    found = load_graph(path)
    counts = f"{len(found.nodes)} nodes, {len(found.links)} links"
    return "attribution graph", f"{found.slug} of {found.scan}: {counts}"


def _rows(path: Path, model: str | None) -> Found:
    """JSON lines, Parquet and Arrow: pairs, questions or documents."""
    from interpcore.data.documents import read_rows

    first = next((row for _, row in read_rows(path)), {})
    if {"clean", "corrupted"} & set(first):
        return _own_pairs(path, model)
    if {"layer", "neuron"} <= set(first) or (path.suffix == ".parquet" and "text" not in first):
        return _frame(path) if "question" not in first else _questions(path, model)
    return _questions(path, model) if "question" in first else _documents(path)


def _table(path: Path, model: str | None) -> Found:
    from interpcore.data.table_rows import read_table

    columns = {name.lower() for name in read_table(path)[0]}
    for needed, read in _BY_COLUMNS:
        if needed <= columns:
            return read(path, model)
    return _own_pairs(path, model)


def _published_pairs(path: Path, model: str | None) -> Found:
    from interpcore.circuits.tasks import load_pairs
    from interpcore.data.prompt_pairs import COLUMNS
    from interpcore.data.table_rows import read_table

    columns = set(read_table(path)[0])
    named = path.parent.name if path.parent.name in COLUMNS else None
    fits = [t for t, c in COLUMNS.items() if set(c) - {"corrupted_hard", "group", "label"} <= columns]
    task = named or max(fits, key=lambda each: len(COLUMNS[each]))
    if model is None:
        return "published prompt pairs", f"{task}; --model reads its answers"
    return "published prompt pairs", f"{task}, {len(load_pairs(task, path, _tokenizer(model)))} pairs"


def _questions(path: Path, model: str | None) -> Found:
    from interpcore.data.question_sets import read_questions

    return "questions", f"{len(read_questions(str(path)))} questions"


def _documents(path: Path, model: str | None = None) -> Found:
    from interpcore.data.corpus import open_corpus

    texts = list(open_corpus(path).texts())
    return "documents", f"{len(texts)} of {sum(map(len, texts))} characters"


def _frame(path: Path, model: str | None = None) -> Found:
    from interpcore.runs.frames import read_frame

    frame = read_frame(path)
    return "table", f"{len(frame)} rows of {len(frame.columns)} columns"


def _trials(path: Path, model: str | None) -> Found:
    from interpcore.generalize.suites import read_trials

    return "trials", ", ".join(each.id for each in read_trials(path))


def _verbs(path: Path, model: str | None) -> Found:
    from interpcore.data.verbs import read_verbs

    return "verb list", f"{len(read_verbs(path))} verbs"


def _neurons(path: Path, model: str | None) -> Found:
    from interpcore.neurons.published import read_published

    return "neuron table", f"{len(read_published(path))} neurons"


def _tasks(path: Path, model: str | None) -> Found:
    from interpcore.data.tasks import read_tasks

    return "tasks", "; ".join(f"{task.name}: {len(task.examples)}" for task in read_tasks(path))


def _features(path: Path, model: str | None) -> Found:
    from interpcore.neurons.features import read_entries

    return "feature file", f"{len(read_entries(path))} rules"


def _manifest(path: Path, model: str | None) -> Found:
    return _folder(path.parent)


def _config(path: Path, model: str | None) -> Found:
    return _model(path.parent)


def _text(path: Path, model: str | None) -> Found:
    if path.suffix == ".plan" and model is not None:
        return _plan(path.read_text(), model)
    return _documents(path)


def _shard(path: Path, model: str | None) -> Found:
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Refused(f"{path} is cut short or not an array ({error}).") from error
    return "array", f"{array.dtype} {tuple(array.shape)}; the folder's manifest says of what"


def _gguf(path: Path, model: str | None) -> Found:
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise Refused(f"{path} is no GGUF file: it does not begin with GGUF.")
    return "GGUF file", f"{path.stat().st_size / 1e6:.0f} MB; a model or control vectors"


Reader = Callable[[Path, str | None], Found]

_BY_KEYS: tuple[tuple[set[str], Reader], ...] = (
    ({"metadata", "qParams", "nodes", "links"}, _graph),
    ({"version", "status", "eval"}, eval_log),
    ({"prompt_templates", "samples"}, _relations),
    ({"cfg", "edges"}, mib_scores),
    ({"features"}, _features),
    ({"examples", "name"}, _tasks),
    ({"claim", "statistic"}, claims),
    ({"model", "weights", "arguments", "created"}, card),
    ({"shards"}, _manifest),
    ({"model_type"}, _config),
    ({"pairs"}, _own_pairs),
    ({"clean", "corrupted"}, _own_pairs),
)
_BY_COLUMNS: tuple[tuple[set[str], Reader], ...] = (
    ({"subject", "object"}, _relations),
    ({"layer", "neuron"}, _neurons),
    ({"sing", "plur"}, _verbs),
    ({"loader", "action"}, steering_file),
    ({"question"}, _questions),
    *(
        ({"clean", "corrupted", *columns}, _published_pairs)
        for columns in (
            ("correct_idx",),
            ("plural",),
            ("clean_answer_idx", "corrupted_answer_idx"),
            ("country_idx", "corrupted_country_idx"),
            ("answers_idx", "corrupted_answers_idx"),
        )
    ),
)
_BY_SUFFIX: dict[str, Reader] = {
    ".csv .tsv .tab": _table,
    ".json": _json,
    ".jsonl .ndjson .jsonl.gz .jsonl.zst .parquet .arrow": _rows,
    ".safetensors": tensor_file,
    ".pt .pth": torch_file,
    ".txt .text .md .plan .txt.gz .txt.zst": _text,
    ".sqlite": database,
    ".py": _trials,
    ".npz": _dictionaries,
    ".yml .yaml": _recipe,
    ".npy": _shard,
    ".eval": eval_log,
    ".gguf": _gguf,
}
