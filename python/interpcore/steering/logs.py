"""An accuracy study's answers as evaluation logs, one per condition, which Inspect's viewer and data frames
read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interpcore._version import __version__
from interpcore.data.eval_logs import VERSION, EvalLog, read_eval_log, write_eval_log
from interpcore.data.question_sets import LETTERS
from interpcore.errors import Refused
from interpcore.runs import RunCard
from interpcore.stats import mean_over_clusters
from interpcore.steering.asking import Answers
from interpcore.steering.prompts import Item, read_answer

SCORER = "right"


def write_logs(
    folder: Path,
    card: RunCard,
    items: Sequence[Item],
    conditions: Sequence[tuple[Mapping[str, Any], Answers]],
    tokenizer: Any,
) -> list[Path]:
    """Write `<folder>/<condition>.eval` for every condition.

    Args:
        folder: where to, see `make_folder`.
        card: of the run.
        items: the questions as they were asked.
        conditions: what each says of itself (condition, coefficient), and the answers under it.
        tokenizer: that made the prompts.
    Returns: the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for told, found in conditions:
        name = str(told["condition"]).replace(" ", "-")
        name += f"_{told['coefficient']:.15g}" if told["coefficient"] else ""
        files.append(folder / f"{name}.eval")
        write_eval_log(answers_log(card, items, told, found, tokenizer), files[-1])
    return files


def make_folder(folder: Path, card: RunCard) -> None:
    """Make the folder of a run's logs, before anything is asked.

    Raises: Refused for one that holds logs of another run, or something that is none; OSError where it cannot
        be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.glob("*.eval")):
        if read_eval_log(file).header["eval"].get("run_id") != _id(card, "run"):
            raise Refused(f"{file} is a log of another run; give --logs another folder.")


def answers_log(
    card: RunCard, items: Sequence[Item], told: Mapping[str, Any], found: Answers, tokenizer: Any
) -> EvalLog:
    """The answers under one condition as a log; arguments as in `write_logs`."""
    samples = [_sample(card, item, found, i, tokenizer) for i, item in enumerate(items)]
    share = mean_over_clusters([float(right) for right in found.right], range(len(items)))
    metrics = {
        name: {"name": name, "value": value, "params": {}}
        for name, value in (("accuracy", share.value), ("low", share.low), ("high", share.high))
    }
    score = {"name": SCORER, "scorer": SCORER, "params": {}, "metrics": metrics}
    score["metadata"] = {"low, high": "95% interval, questions as units"}
    sources = sorted({item.question.src for item in items})
    ids = [sample["id"] for sample in samples]
    header = {
        "version": VERSION,
        "status": "success",
        "eval": {
            "run_id": _id(card, "run"),
            "eval_id": _id(card, repr(sorted(told.items()))),
            "task_id": _id(card, "task"),
            "created": card.created,
            "task": "steering-accuracy",
            "task_version": 0,
            "task_attribs": {},
            "task_args": {**told, **_plain(card.arguments)},
            "dataset": {
                "name": ", ".join(sources),
                "samples": len(ids),
                "sample_ids": ids,
                "shuffled": False,
            },
            "model": f"interpcore/{card.model}",
            "model_args": {"weights": card.weights, "dtype": card.dtype},
            "config": {"epochs": 1},
            "packages": {"interpcore": __version__},
            "metadata": {"command": card.command} if card.command else {},
        },
        "plan": {"name": "plan", "steps": [{"solver": str(told["condition"]), "params": dict(told)}]},
        "results": {"total_samples": len(ids), "completed_samples": len(ids), "scores": [score]},
        "stats": {"started_at": card.created, "completed_at": card.created, "model_usage": {}},
    }
    return EvalLog(header, samples)


def _sample(card: RunCard, item: Item, found: Answers, number: int, tokenizer: Any) -> dict[str, Any]:
    question, said = item.question, _said(item, found, number)
    prompt = tokenizer.decode(item.prompt, skip_special_tokens=True)
    reply = {"role": "assistant", "content": said, "source": "generate"}
    about: dict[str, Any] = {"category": question.category, "src": question.src}
    if question.memory_reason_score is not None:
        about["memory_reason_score"] = question.memory_reason_score
    score: dict[str, Any] = {"value": "C" if found.right[number] else "I", "answer": said}
    if found.texts:
        score["answer"] = read_answer(found.texts[number], question)
    elif found.chosen and question.options:
        score["answer"] = LETTERS[found.chosen[number]]
    if found.chance:
        score["metadata"] = {"chance": found.chance[number]}
    return {
        "id": str(number),
        "epoch": 1,
        "input": question.question,
        "choices": list(question.options) or None,
        "target": question.answer if question.options else list(question.right),
        "messages": [{"role": "user", "content": prompt}, reply],
        "output": {
            "model": f"interpcore/{card.model}",
            "choices": [{"message": reply, "stop_reason": "stop"}],
            "completion": said,
        },
        "scores": {SCORER: score},
        "metadata": about | {"question_id": question.question_id},
        "store": {},
        "events": [],
        "model_usage": {},
    }


def _said(item: Item, found: Answers, number: int) -> str:
    """What the model answered: its text, or the option that it gave the highest probability."""
    if found.texts:
        return found.texts[number]
    return item.question.options[found.chosen[number]] if found.chosen else ""


def _id(card: RunCard, of: str) -> str:
    return hashlib.sha256(f"{card.key}\n{of}".encode()).hexdigest()[:22]


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
