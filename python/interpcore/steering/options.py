"""What steering experiments are asked for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.errors import Refused
from interpcore.runs.options import PROTOCOLS, Options, option

if TYPE_CHECKING:
    from interpcore.data.corpus import Corpus

KIND = "steering directions"  # what a file of directions says it is
METHODS = ("mean", "pca", "lat", "ridge", "logistic")
TOKENS = ("last", "answer", "all")
ANSWERS = ("options", "letters", "generate")
EDITS = ("add", "amplify", "ablate", "clamp")
SCALES = ("unit", "norm", "own")
POSITIONS = ("all", "last", "onward", "answer")
SPLIT_BY = ("question", "category")
PARTS = ("direction", "selection", "test", "all")
SITES = ("resid", "attn_out", "mlp_out", "block_out", "attn_in", "mlp_in")
TEMPLATE = "Q: {question}\nA:"


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(Options):
    """Which questions."""

    questions: str = option(
        "tiny",
        "Questions: a file (.json, .jsonl, .parquet, .arrow, .csv, .tsv), a folder of MMLU, MMLU-Pro, GSM8K "
        "or PopQA, the LiReFs archive's samples; or 'tiny' ('tiny:400'), the tiny world's.",
        circumstance=True,
    )
    split: str = option("test", "Which split of a folder that holds several.")
    count: int | None = option(None, "A random choice of so many questions.", least=4)
    seed: int = option(0, "Of the choice, of the parts, and of all else that is drawn.", least=0)
    split_by: str = option(
        "question",
        "What the parts share none of: questions, or whole categories (what holds across categories is not "
        "the wording of one).",
        choices=SPLIT_BY,
    )
    template: str = option(TEMPLATE, "How a question alone is asked; \\n is a new line.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "template", self.template.replace("\\n", "\n"))
        if "{question}" not in self.template:
            raise Refused(f"template is {self.template!r}; it needs {{question}} where the question goes.")

    def check_data(self) -> None:
        """See `Options.check_data`: reads the questions."""
        self.read()
        super().check_data()

    def read(self):  # type: ignore[no-untyped-def]
        """The questions, see `data.question_sets`."""
        from interpcore.data.question_sets import read_questions

        return read_questions(self.questions, self.split, self.count, self.seed)

    def data_hash(self) -> str:
        """What the card says of the questions."""
        from interpcore.data.question_sets import source_hash

        return source_hash(self.questions, self.split)


@dataclass(frozen=True, kw_only=True)
class StatesOptions(QuestionOptions):
    """Of what states are taken."""

    sites: tuple[str, ...] = option(("resid",), "Sites whose states are taken.", flag="site", choices=SITES)
    tokens: str = option(
        "last",
        "At the prompt's last token, or the mean over all tokens of the model's answer, or over both.",
        choices=TOKENS,
    )
    new_tokens: int = option(32, "Tokens of an answer at most.", least=1)
    part: str = option("direction", "Which part of the questions directions are made of.", choices=PARTS)
    shuffles: int = option(
        5, "Shufflings of the labels that a direction is made of, too, as controls.", least=0
    )
    protocol: str = option(
        "default",
        "'paper' asks as published: its template, directions made of all questions.",
        choices=PROTOCOLS,
    )
    slice_size: int = option(64, "Questions of a cell: what a killed run does again at most.", least=1)


@dataclass(frozen=True, kw_only=True)
class Method(Options):
    """How a direction is found."""

    method: str = option(
        "mean",
        "Difference in means (streamed, no state is kept), first principal component, LAT, ridge or logistic "
        "regression.",
        choices=METHODS,
    )


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options):
    """How linear probes are trained."""

    training: str = option(
        "default",
        "'paper': one bias-free softmax probe per depth, AdamW, best depth and epoch by loss on the test "
        "questions; default: penalised logistic regression, its depth chosen on questions of their own.",
        choices=PROTOCOLS,
    )
    epochs: int = option(1000, "Of 'paper' at most.", least=1)
    patience: int = option(10, "Epochs without improvement that end 'paper'.", least=1)
    learning_rate: float = option(5e-5, "Of 'paper'.", above=0)
    weight_decay: float = option(0.01, "Of 'paper'.", least=0)
    batch_size: int = option(32, "Of 'paper'; incomplete batches are dropped, as published.", least=1)
    test_ratio: float = option(0.25, "Share of test questions of 'paper'.", above=0, below=1)


@dataclass(frozen=True, kw_only=True)
class DirectionOptions(Options):
    """Which direction is written, and how."""

    directions: str | None = option(
        None, "Directions: the run folder of `steering directions`, or its file.", circumstance=True
    )
    site: str = option("resid", "Site that is edited.", choices=SITES)
    edit: str = option("add", "What is done along the direction.", choices=EDITS)
    scale: str = option(
        "norm",
        "Length that a coefficient of 1 adds: one, the mean state's, or the direction's own.",
        choices=SCALES,
    )
    positions: str = option(
        "onward",
        "All tokens, the prompt's last one, from it on, or those after it.",
        choices=POSITIONS,
    )
    calls: tuple[str, ...] = option(
        (),
        "Block calls beside the depths: core.1:8-15, or 'core 1, steps 8 to 15' (from 0, both included); "
        "core.1 (every step); core.1:-1.",
        flag="call",
        commas=False,
    )
    other_model: bool = option(False, "Take directions of another model of the same shape.")

    def __post_init__(self) -> None:
        from interpcore.model.call import read_address

        super().__post_init__()
        calls = tuple(one.strip() for text in self.calls for one in re.split(r",(?!\s*steps?\b)", text))
        object.__setattr__(self, "calls", calls)
        for text in calls:
            read_address(text)

    def check_data(self) -> None:
        """See `Options.check_data`: looks for the directions."""
        super().check_data()
        if self.directions is not None:
            _check_kind(directions_file(self.directions), KIND)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(QuestionOptions):
    """How questions are asked and answers read."""

    answers: str = option(
        "options",
        "Score the options' texts or their letters without generation, or generate and read the answer.",
        choices=ANSWERS,
    )
    shots: int = option(0, "Answered questions of the same category before each.", least=0)
    shots_from: str | None = option(
        None, "The set that those are of; default: the questions left out.", file=True
    )
    new_tokens: int = option(32, "Tokens of a generated answer at most.", least=1)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(AnswerOptions, DirectionOptions):
    """Depths by coefficients."""

    part: str = option("selection", "Which part of the questions is asked.", choices=PARTS)
    depths: tuple[int, ...] = option((), "Depths; default: all.", flag="depth")
    coefficients: tuple[float, ...] = option(
        (-1.0, -0.5, -0.25, -0.1, 0.1, 0.25, 0.5, 1.0), "Coefficients beside 0.", flag="coefficient"
    )
    batch: int = option(256, "Rows at once at most.", least=1, circumstance=True)


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(AnswerOptions, DirectionOptions):
    """One intervention against its controls."""

    part: str = option("test", "Which part of the questions is asked.", choices=PARTS)
    intervention: str | None = option(
        None,
        "A file of an intervention (ours, lm-eval's .pt or .csv, a GGUF control vector), not directions.",
        circumstance=True,
    )
    depths: tuple[int, ...] = option((), "Depths that are edited together.", flag="depth")
    coefficients: tuple[float, ...] = option((1.0,), "Each is a condition of its own.", flag="coefficient")
    controls: int = option(3, "Random directions, and shuffled-label ones, of equal length.", least=0)
    prompt: str | None = option(None, "An instruction put in front, as a baseline; \\n is a new line.")
    neutral: str = option(
        "tiny",
        "Text whose loss says what else is changed: a file (.txt, .jsonl, .parquet; .gz, .zst), a folder, - "
        "(standard input) or hf:NAME; or 'tiny' for the tiny world's.",
        circumstance=True,
    )
    neutral_texts: int = option(32, "Texts of it.", least=2)
    logs: str | None = option(
        None,
        "Also write a folder of evaluation logs in Inspect's form, a .eval per condition.",
        circumstance=True,
    )

    def check_data(self) -> None:
        """See `Options.check_data`: the questions, directions or file, and neutral text."""
        if self.logs is not None and Path(self.logs).exists() and not Path(self.logs).is_dir():
            raise Refused(f"--logs is {self.logs}, which is a file; give a folder.")
        super().check_data()
        if (self.directions is None) == (self.intervention is None):
            raise Refused("Give either --directions (with --depth) or --intervention.")
        if self.directions is not None and not (self.depths or self.calls):
            raise Refused("Say at which depth the direction is written: --depth 3.")
        if self.intervention is not None and not Path(self.intervention).is_file():
            raise Refused(f"There is no file {self.intervention}.")
        self.neutral_hash()

    def neutral_hash(self) -> str:
        """What the card says of the neutral text."""
        corpus = self.neutral_corpus()
        return "tiny" if corpus is None else corpus.hash

    def neutral_corpus(self) -> Corpus | None:
        """The neutral text; None for the tiny world's."""
        from interpcore.data.corpus import open_corpus

        return None if self.neutral == "tiny" else open_corpus(self.neutral)


@dataclass(frozen=True, kw_only=True)
class EffectOptions(AnswerOptions, DirectionOptions):
    """Where a direction changes the next token's distribution."""

    part: str = option("test", "Which part of the questions is asked.", choices=PARTS)
    questions_at_most: int = option(32, "Prompts, of the part's first ones.", least=1)
    coefficients: tuple[float, ...] = option(
        (0.01, 0.1),
        "Coefficients of the exact divergence; the second order is per c squared.",
        flag="coefficient",
    )
    at: str = option(
        "last", "Where one edit is: the last token; each token on its own; or all of them at once.",
        choices=("last", "each", "all"),
    )  # fmt: skip
    protocol: str = option("default", "'paper' adds the published effect, zero or NaN.", choices=PROTOCOLS)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """A benchmark of the lm-eval harness under an intervention."""

    tasks: tuple[str, ...] = option((), "Tasks of the harness.", flag="task")
    include_path: str | None = option(None, "A folder of task YAMLs of your own.", circumstance=True)
    limit: int | None = option(None, "Documents of a task at most.", least=1)
    num_fewshot: int | None = option(None, "Examples before each; default: as the task says.", least=0)
    intervention: str | None = option(None, "A file of an intervention, see `accuracy`.", circumstance=True)
    plan: str | None = option(None, "Run this plan of blocks: 'skip 3', 'repeat 1 x2', '0-2, 1 x5, 3'.")
    steps: int | None = option(None, "Recurrence steps of a depth-recurrent model.", least=1)
    max_gen_toks: int | None = option(
        None, "Tokens that a task generates at most; default: as the task says.", least=1
    )
    apply_chat_template: bool = option(False, "Ask in the tokenizer's chat form.")
    batch_size: int = option(16, "Requests at once.", least=1, circumstance=True)

    def check_data(self) -> None:
        """See `Options.check_data`: the file, the folder and the tasks."""
        if not self.tasks:
            raise Refused("Say which task of the harness to run: --task mmlu.")
        for given in (self.intervention, self.include_path):
            if given is not None and not Path(given).exists():
                raise Refused(f"There is no {given}.")
        from interpcore.steering.harness import manager_of

        manager_of(self.tasks, self.include_path)


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(DirectionOptions):
    """Text with and without an intervention."""

    prompt: str = option("Q: What is 3 + 4?\\nA:", "What is continued; \\n is a new line.")
    intervention: str | None = option(None, "A file of an intervention, see `accuracy`.", circumstance=True)
    depths: tuple[int, ...] = option((), "Depths that are edited together.", flag="depth")
    coefficients: tuple[float, ...] = option((1.0,), "One text for each.", flag="coefficient")
    new_tokens: int = option(32, "Tokens at most.", least=1)

    def check_data(self) -> None:
        """See `Options.check_data`."""
        super().check_data()
        if (self.directions is None) == (self.intervention is None):
            raise Refused("Give either --directions (with --depth) or --intervention.")


def directions_file(given: str | os.PathLike[str]) -> Path:
    """The file of directions that a path or the run folder of `steering directions` means.

    Raises: Refused where there is none, or several.
    """
    path = Path(given)
    if not path.is_dir():
        if not path.is_file():
            raise Refused(
                f"There are no directions at {path}; make them with `interpcore steering directions`."
            )
        return path
    found = sorted((path / "artifacts" / "directions").glob("*.safetensors"))
    if len(found) != 1:
        there = ", ".join(map(str, found))
        raise Refused(
            f"{path} holds several directions; name one of {there}."
            if found
            else f"{path} holds no directions; make them with `interpcore steering directions --out {path}`."
        )
    return found[0]


def _check_kind(path: Path, kind: str) -> None:
    """Raises: Refused for a file that says it is another kind."""
    from interpcore.runs.artifacts import read_metadata

    if read_metadata(path).get("kind") != kind:
        raise Refused(f"{path} holds no {kind}.")
