"""The recurrent-steering study's thirty jobs by their names, on its folder layout.

    WORKSPACE/transformers/<model>, WORKSPACE/datasets/lirefs, WORKSPACE/datasets/<owner>/<name>

or the hub's cache layout below either (`models--owner--name`, `datasets--owner--name`). Results are run
folders in WORKSPACE/experiments; what a job needs and the workspace lacks (directions, probes) is made first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from interpcore.errors import Refused
from interpcore.runs.experiment import Experiment, Report
from interpcore.steering import experiments
from interpcore.steering.options import (
    AccuracyOptions,
    EffectOptions,
    EvaluateOptions,
    Method,
    ProbeOptions,
    StatesOptions,
    directions_file,
)

HUGINN, LLAMA = "huginn-0125", "Meta-Llama-3-8B"
BLOCKS = {HUGINN: 132, LLAMA: 32}  # block calls of the published runs
NEW_TOKENS = 200
SHOTS = 5


@dataclass(frozen=True)
class Job:
    """What a published job does.

    Args:
        does: "states", "directions", "effect", "accuracy" or "lm-eval".
        model: folder of the model.
        tokens: of the states that directions are made of: "last" (FIRST_ANSWER_TOKEN) or "all" (ALL_TOKENS).
        layer: published index that is edited; None edits nothing.
        scale: "unit", or "norm" (SCALE_WITH_OVERALL_MAGNITUDE).
        edit: "add" or "amplify".
        probes: the direction is a probe's.
        task: of the harness.
        shots: examples, of the harness's tasks.
        note: what the published code does otherwise.
    """

    does: str
    model: str = HUGINN
    tokens: str = "last"
    layer: int | None = None
    scale: str = "unit"
    edit: str = "add"
    probes: bool = False
    task: str = ""
    shots: int = 0
    note: str = ""


_CONSTANT = (
    "The published directions of the first answer token average each state over its features, so that all "
    "entries are one number; these are the difference in means."
)


def _jobs() -> Iterator[tuple[str, Job]]:
    yield "save_hidden_states", Job("states", note="The published job iterates over a string and cannot run.")
    for model in (HUGINN, LLAMA):
        which = "" if model == HUGINN else "meta-llama-3-8b_"
        for tokens, end in (("last", ""), ("all", "_all_tokens")):
            note = _CONSTANT if tokens == "last" else ""
            yield (
                f"mmlu_pro_{which}save_candidate_directions{end}",
                Job("directions", model, tokens, note=note),
            )
            yield f"mmlu_pro_{which}analyze_steering_effect_per_layer{end}", Job("effect", model, tokens)
    ask, under = "evaluate_accuracy_reasoning_memorizing", "_with_intervention"
    yield f"mmlu_pro_{ask}", Job("accuracy")
    for layer, end in ((66, ""), (129, "_129"), (1, "_1")):
        yield f"mmlu_pro_{ask}{under}{end}", Job("accuracy", layer=layer, note=_CONSTANT)
    yield f"mmlu_pro_{ask}{under}_1_all_tokens", Job("accuracy", tokens="all", layer=1)
    yield f"mmlu_pro_meta-llama-3-8b_{ask}", Job("accuracy", LLAMA)
    yield f"mmlu_pro_meta-llama-3-8b_{ask}{under}", Job("accuracy", LLAMA, layer=21, note=_CONSTANT)
    for task in ("mmlu_pro", "mmlu"):
        yield f"{task}_evaluate_lm_eval", Job("lm-eval", task=task)
    wrong = "The published job is registered under the wrong dispatcher and cannot run."
    yield "mmlu_pro_evaluate_lm_eval_few_shots_1", Job("lm-eval", task="mmlu_pro", shots=1, note=wrong)
    for layer, end in ((66, ""), (129, "_129")):
        yield (
            f"mmlu_pro_evaluate_lm_eval{under}{end}",
            Job("lm-eval", layer=layer, task="mmlu_pro", note=_CONSTANT),
        )
    mmlu = f"mmlu_evaluate_lm_eval{under}"
    for layer, end in ((66, ""), (1, "_1"), (127, "_127"), (129, "_129")):
        yield f"{mmlu}{end}", Job("lm-eval", layer=layer, task="mmlu", note=_CONSTANT)
    missing = (
        "The published code has no such job; amplification has no scale, so the magnitude does not enter."
    )
    scaled = Job("lm-eval", layer=66, scale="norm", edit="amplify", task="mmlu", note=missing)
    yield f"{mmlu}_scale_with_overall_magnitude_feature_amplification", scaled
    every = Job("lm-eval", tokens="all", layer=1, task="mmlu")
    yield f"{mmlu}_1_all_tokens", every
    raises = "The published constructor raises; this adds the direction at the length of the mean state."
    yield f"{mmlu}_1_all_tokens_scale_with_overall_magnitude", replace(every, scale="norm", note=raises)
    probes = Job("lm-eval", layer=31, probes=True, task="mmlu")
    yield f"{mmlu}_use_linear_probes", probes
    yield f"{mmlu}_use_linear_probes_few_shots_1", replace(probes, shots=1)


JOBS = dict(_jobs())


def find_job(name: str) -> Job:
    """A published job. Raises: Refused for another name, with those like it."""
    if name not in JOBS:
        near = get_close_matches(name, JOBS, 3) or list(JOBS)
        raise Refused(f"There is no job {name!r}; did you mean {', '.join(near)}?")
    return JOBS[name]


@dataclass(frozen=True)
class Workspace:
    """A folder in the published layout.

    Args:
        folder: the workspace.
        count: questions at most, a random choice; None for all.
        limit: documents of a harness's task at most.
        new_tokens: of an answer at most; None is 200, and as each of the harness's tasks says.
        shots: examples before each question, where its accuracy is asked.
        workers: processes that share the work.
        progress: show it.
    """

    folder: Path
    count: int | None = None
    limit: int | None = None
    new_tokens: int | None = None
    shots: int = SHOTS
    workers: int = 1
    progress: bool = False

    def check(self, name: str) -> None:
        """Refuse a workspace that lacks what a job reads, before a model is loaded."""
        job = find_job(name)
        self.model_folder(job.model)
        if job.does != "lm-eval" or job.layer is not None:
            self.samples()

    def model_folder(self, name: str) -> Path:
        """Where a model's weights are. Raises: Refused where they are not."""
        models = self.folder / "transformers"
        cached = sorted(models.glob(f"models--*--{name}/snapshots/*"))
        for place in (models / name, *cached[-1:]):
            if (place / "config.json").is_file():
                return place
        raise Refused(f"There is no model {name} in {models}; bring its folder there.")

    def samples(self) -> str:
        """LiReFs' samples of MMLU-Pro. Raises: Refused where they are not."""
        file = self.folder / "datasets" / "lirefs" / "mmlu-pro-3000samples.json"
        if not file.is_file():
            raise Refused(f"There is no {file}; extract the LiReFs archive there.")
        return str(file)

    def run(self, name: str, model: Any | None = None) -> Report:
        """Run a job, and what it needs first.

        Args:
            name: of a published job.
            model: the decoder; None loads the job's.
        """
        job = find_job(name)
        self.check(name)
        if model is None:
            import interpcore

            model = interpcore.load(str(self.model_folder(job.model)))
        report = getattr(self, f"_{job.does.replace('-', '_')}")(name, job, model)
        notes = (*report.notes, *((job.note,) if job.note else ()))
        return replace(report, notes=notes)

    def _out(self, *parts: str) -> Path:
        place = self.folder.joinpath("experiments", *parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _do(
        self, experiment: Experiment, model: Any, out: Path, options: Any, asked: Any = None, **more: Any
    ) -> Report:
        how = {"workers": self.workers, "progress": self.progress} | more
        with experiment.open(model, out, options, **how) as study:
            return experiment.run(study, asked)

    def _states_options(self, job: Job, model: Any) -> StatesOptions:
        sites = ("block_out",) if self._recurs(model) else ("resid",)
        return StatesOptions(
            questions=self.samples(),
            count=self.count,
            sites=sites,
            tokens=job.tokens,
            new_tokens=self.new_tokens or NEW_TOKENS,
            protocol="paper",
        )

    def _recurs(self, model: Any) -> bool:
        return model.spec.recurrence is not None

    def _states(self, name: str, job: Job, model: Any) -> Report:
        out = self._out("save_hidden_states", job.model)
        return self._do(experiments.STATES, model, out, self._states_options(job, model))

    def _directions(self, name: str, job: Job, model: Any) -> Report:
        out = self._directions_folder(job)
        return self._do(experiments.DIRECTIONS, model, out, self._states_options(job, model), Method())

    def _directions_folder(self, job: Job) -> Path:
        mode = "ALL_TOKENS" if job.tokens == "all" else "FIRST_ANSWER_TOKEN"
        return self._out("save_candidate_directions", f"{job.model}_{mode}")

    def _found(self, job: Job, model: Any) -> Path:
        """The file of a job's directions, made where there is none."""
        if job.probes:
            folder = self._out("save_hidden_states", job.model)
            file = folder / "artifacts" / "directions" / "probe-paper.safetensors"
            asked = ProbeOptions(training="paper")
            if self.count is not None:  # a quarter of them must fill a test batch
                fits = max(1, int(self.count * asked.test_ratio))
                asked = replace(asked, batch_size=min(asked.batch_size, fits))
            if not file.is_file():
                self._do(experiments.PROBES, model, folder, self._states_options(job, model), asked)
            return file
        folder = self._directions_folder(job)
        if not (folder / "artifacts" / "directions" / "mean.safetensors").is_file():
            self._directions("", job, model)
        return directions_file(folder)

    def _effect(self, name: str, job: Job, model: Any) -> Report:
        found = self._found(job, model)
        if self._recurs(model):
            found = self._as_resid(found, job)
        options = EffectOptions(
            questions=self.samples(),
            count=self.count,
            part="all",
            directions=str(found),
            answers="generate",
            scale="unit",
            protocol="paper",
            questions_at_most=self.count or 3000,
        )
        return self._do(experiments.EFFECT, model, self._out(name), options)

    def _as_resid(self, file: Path, job: Job) -> Path:
        """Directions of block outputs as those of the stream that enters the next call."""
        import torch

        from interpcore.steering.directions import Directions

        found = Directions.load(file)
        first = torch.zeros_like(found.vectors["block_out"][:1])
        vectors = {"resid": torch.cat([first, found.vectors["block_out"]])}
        norms = {"resid": torch.cat([first[:, 0], found.norms["block_out"]])}
        whole = Directions(vectors, norms, {}, found.made_on, found.about)
        place = self._out("save_candidate_directions", f"{job.model}_{job.tokens}_resid.safetensors")
        whole.save(place)
        return place

    def _intervention(self, name: str, job: Job, model: Any) -> Path | None:
        """The job's edits, as a file; None where it edits nothing."""
        if job.layer is None:
            return None
        from interpcore.steering import files
        from interpcore.steering.directions import Directions
        from interpcore.steering.interventions import Intervention, Part

        directions = Directions.load(self._found(job, model))
        site = "block_out" if self._recurs(model) else "resid"
        depth = published_depth(model, job.layer, job.model, site)
        u = directions.unit(site, depth)
        length = float(directions.norms[site][depth]) if job.scale == "norm" and job.edit == "add" else 1.0
        # Llama's published runs write attention and MLP outputs as well, along the block input's direction.
        sites = (site, "attn_out", "mlp_out") if job.model == LLAMA else (site,)
        parts = tuple(Part(each, depth, job.edit, u * length if job.edit == "add" else u) for each in sites)
        place = self._out("interventions", f"{name}.safetensors")
        files.save(place, Intervention(parts, name, directions.made_on))
        return place

    def _accuracy(self, name: str, job: Job, model: Any) -> Report:
        lirefs = self.folder / "datasets" / "lirefs" / "mmlu-pro"
        file = self._intervention(name, job, model) or self._no_edit()
        options = AccuracyOptions(
            questions=self.samples(),
            count=self.count,
            part="all",
            answers="generate",
            new_tokens=self.new_tokens or NEW_TOKENS,
            shots=self.shots if lirefs.is_dir() else 0,
            shots_from=str(lirefs) if lirefs.is_dir() else None,
            intervention=str(file),
            controls=0 if job.layer is None else 1,
        )
        report = self._do(experiments.ACCURACY, model, self._out(name), options)
        if lirefs.is_dir():
            return report
        return replace(report, notes=(*report.notes, f"No examples: there is no {lirefs} to take them from."))

    def _no_edit(self) -> Path:
        from interpcore.steering import files
        from interpcore.steering.interventions import Intervention

        place = self._out("interventions", "none.safetensors")
        files.save(place, Intervention())
        return place

    def _lm_eval(self, name: str, job: Job, model: Any) -> Report:
        file = self._intervention(name, job, model)
        options = EvaluateOptions(
            tasks=(job.task,),
            num_fewshot=job.shots,
            limit=self.limit,
            max_gen_toks=self.new_tokens,
            intervention=None if file is None else str(file),
        )
        options.check_data()
        datasets = str(self.folder / "datasets")
        return self._do(experiments.EVALUATE, model, self._out(name), options, datasets=datasets)


def published_depth(model: Any, layer: int, name: str, site: str) -> int:
    """The depth that a published index means in a model: itself in one of the published size, else the same
    place in proportion. For Huginn the index counts block calls (132 at 32 steps), for Llama blocks.

    Args:
        model: the decoder.
        layer: published index.
        name: of the published model.
        site: "resid" (Llama's block inputs) or "block_out" (Huginn's block outputs).
    """
    calls = model.plan.n_calls
    last = calls - (site == "block_out")
    return min(round(layer * calls / BLOCKS[name]), last)
