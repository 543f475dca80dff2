"""Benchmarks of the lm-eval harness under an intervention, a task a cell; and texts with and without one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from interpcore.errors import Refused
from interpcore.model.card import run_card
from interpcore.model.prompts import token_ids
from interpcore.runs import Row, RunFolder, experiment, write_json
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.steering import asking, harness
from interpcore.steering.asking import AskingStudy
from interpcore.steering.files import intervention_hash, load
from interpcore.steering.interventions import Intervention
from interpcore.steering.options import EvaluateOptions, GenerateOptions

BOOTSTRAP = 1000  # draws of a standard error that has no formula; the harness takes 100000
NOTE = "value_se: the harness's own standard error; n: documents."


def run_task(study: EvaluateStudy, task: str) -> list[dict[str, Any]]:
    """One cell: a task of the harness, with its groups and subtasks."""
    from lm_eval import simple_evaluate

    options = study.options
    lm = harness.model_class()(study.model, study.intervention, batch_size=options.batch_size)
    with harness.local_datasets(None if study.datasets is None else Path(study.datasets)):
        found = simple_evaluate(
            model=lm,
            tasks=[task],
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            task_manager=harness.manager_of([task], options.include_path),
            gen_kwargs=None if options.max_gen_toks is None else {"max_gen_toks": options.max_gen_toks},
            apply_chat_template=options.apply_chat_template,
            log_samples=False,
            bootstrap_iters=BOOTSTRAP,
        )
    return harness.results_of(found, task)


@dataclass(eq=False)
class EvaluateStudy(experiment.Study):
    """What the tasks share.

    Attributes:
        intervention: what is edited.
        datasets: a folder of data sets that stand in for the hub's.
    """

    options: EvaluateOptions
    intervention: Intervention = field(default_factory=Intervention)
    datasets: str | None = None

    def run(self) -> list[Row]:
        """Run every task that the folder does not hold yet."""
        return self.sweep(run_task, [{"task": task} for task in self.options.tasks])

    def report(self) -> Report:
        """A row of each task and metric."""
        import pandas as pd

        assert self.artifacts is not None
        rows = self.run()
        table = pd.DataFrame([one for row in rows if row.status == "done" for one in row.result])
        problems = tuple(f"{row.key}: {row.error}" for row in rows if row.status != "done")
        file = self.artifacts.artifact("results.json")
        write_json(file, table.to_dict("records"))
        said = f"intervention {self.intervention.name}, {intervention_hash(self.intervention)[:12]}"
        files = (
            (file, *write_frame(self.artifacts.artifact("tables/tasks"), table)) if len(table) else (file,)
        )
        return Report(table, files, (f"{said}; lm-eval's own tasks and metrics.", NOTE), problems)


def open_evaluate(
    model: Any,
    out: str | os.PathLike[str],
    options: EvaluateOptions,
    *,
    datasets: str | None = None,
    command: str | None = None,
    **how: Any,
) -> EvaluateStudy:
    """The study in a run folder, new or gone on with; use it as a context manager.

    Args:
        model: the decoder.
        out: the run folder.
        options: which tasks, and what is edited.
        datasets: a folder of data sets that stand in for the hub's.
        command: what was typed, for the card.
        how: workers and progress, see `runs.experiment.Study`.
    Raises: Refused for a file that does not fit the model, a plan that it cannot run, and steps of a model
        that does not recur.
    """
    from importlib.metadata import version

    model = harness.rearranged(model, options.plan, options.steps)
    given = Intervention() if options.intervention is None else load(options.intervention, model)
    study = EvaluateStudy(model, options, intervention=given, datasets=datasets, **how)
    hashes = {"hash of intervention": intervention_hash(given), "lm-eval": version("lm-eval")}
    card = run_card(model, arguments=options.arguments() | hashes, extends=("tasks",), command=command)
    study.folder = RunFolder.open_or_create(out, card, shared=True)
    study.artifacts = study.folder.artifacts
    return study


def say(study: GenerateStudy, coefficient: float) -> str:
    """One cell: the text at a coefficient, 0 without an edit."""
    options, model = study.options, study.model
    prompt = options.prompt.replace("\\n", "\n")
    ids = token_ids(model.tokenizer, prompt)
    intervention = study.intervention(coefficient) if coefficient else Intervention()
    edits = intervention.edits(model, torch.tensor([len(ids)]), more=options.new_tokens)
    tokens = torch.tensor([ids], device=model.device)
    out = model.generate(tokens, max_new_tokens=options.new_tokens, edits=edits)
    return str(
        model.tokenizer.decode(out.tokens[0, : int(out.lengths[0])].tolist(), skip_special_tokens=True)
    )


@dataclass(eq=False)
class GenerateStudy(AskingStudy):
    """What the texts share."""

    options: GenerateOptions

    def run(self) -> list[Row]:
        """Write every text that the folder does not hold yet."""
        cells = [{"coefficient": c} for c in dict.fromkeys((0.0, *self.options.coefficients))]
        return self.sweep(say, cells, on_error="raise")

    def report(self) -> Report:
        """A row of each coefficient."""
        import pandas as pd

        assert self.artifacts is not None
        values = dict.fromkeys((0.0, *self.options.coefficients))
        table = pd.DataFrame({"coefficient": list(values), "text": [row.result for row in self.run()]})
        files = write_frame(self.artifacts.artifact("tables/texts"), table)
        return Report(table, files, (f"After {self.options.prompt!r}, greedily; 0 is the plain model.",))


def open_generate(
    model: Any,
    out: str | os.PathLike[str],
    options: GenerateOptions,
    *,
    command: str | None = None,
    **how: Any,
) -> GenerateStudy:
    """The study in a run folder, new or gone on with; arguments and errors as `accuracy.open_accuracy`."""
    directions, given = asking.read_written(model, options)
    if given is None and not (options.depths or options.calls):
        raise Refused("Say at which depth the direction is written: --depth 3.")
    study = GenerateStudy(model, options, directions=directions, given=given, **how)
    written = study.intervention(1.0)
    written.check_model(model, options.other_model)
    found = asking.open_folder(study, out, command, hash_of_intervention=intervention_hash(written))
    assert isinstance(found, GenerateStudy)
    return found
