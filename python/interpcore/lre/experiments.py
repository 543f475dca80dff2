"""The experiments of this family, as commands and agents find them."""

from interpcore.lre import options
from interpcore.runs.compared import Compared, Published
from interpcore.runs.experiment import Experiment
from interpcore.runs.options import Options

_STUDY = "interpcore.lre.study:open_study"


def _study(name: str, sentence: str, runs: str, asks: type[Options] | None = None) -> Experiment:
    """A study in the folder of an LRE run, which it may share with all others."""
    example = f"interpcore lre {name} --model tiny --trials 1 --out runs/lre-tiny"
    return Experiment(
        name=f"lre {name}",
        sentence=sentence,
        example=example,
        options=options.Options,
        asks=asks,
        opens=_STUDY,
        runs=f"interpcore.lre.{runs}",
        extra="lre",
    )


_SOURCE = "Hernandez et al. 2024, GPT-J, 47 relations (their hparams files)"
_MEASURED = "trials > 0"
_PUBLISHED = (
    Published(
        "share of relations with faithfulness above 0.6",
        0.489,
        "share(faithfulness > 0.6)",
        _MEASURED,
        _SOURCE,
    ),
    Published("mean faithfulness", 0.598, "mean(faithfulness)", _MEASURED, _SOURCE),
    Published("mean causality", 0.810, "mean(causality)", _MEASURED, _SOURCE),
    Published(
        "correlation of faithfulness and causality",
        0.842,
        "correlation(faithfulness, causality)",
        _MEASURED,
        _SOURCE,
    ),
)
RUN = Experiment(
    name="lre run",
    sentence="Measure faithfulness and causality of every relation, with controls and intervals.",
    example="interpcore lre run --model tiny --relations tiny --out runs/lre-tiny",
    options=options.Options,
    opens=_STUDY,
    extra="lre",
    verifies="interpcore.lre.verify:checks",
    compares=Compared(
        table="tables/subjects",
        keys=("relation", "trial", "subject", "object"),
        measures=("faithfulness", "recall@1", "causality"),
        unit="subject",
        by=("relation",),
        where="known",
        published_table="tables/relations",
        published=_PUBLISHED,
        published_rows="interpcore.lre.report:published_rows",
    ),
)
STUDIES = (
    _study(
        "baselines",
        "Read every relation with every way to an operator, in few-shot and zero-shot prompts.",
        "baselines:run",
        options.Baselines,
    ),
    _study(
        "editors",
        "Edit facts with every editor at every depth: inverses, inserted states, none.",
        "editors:run",
        options.Editors,
    ),
    _study("ranks", "Read and edit at every rank of W.", "variants:run_ranks"),
    _study("examples", "Faithfulness by number of examples.", "variants:run_examples", options.Examples),
    _study("templates", "Faithfulness by template, and in bare prompts.", "variants:run_templates"),
    _study(
        "specificity",
        "Try each relation's operator on the facts of others.",
        "variants:run_specificity",
        options.Specificity,
    ),
    _study(
        "reconstruction",
        "How like the model's last state the operator's is, at every depth.",
        "variants:run_reconstruction",
    ),
    _study(
        "attribute",
        "Read a subject's attribute where the prompt misleads the model (the attribute lens).",
        "attribute:run",
    ),
    _study(
        "sequences",
        "Score whole objects of several tokens by log-probability, beside their first token.",
        "sequences:run",
        options.Sequences,
    ),
    _study(
        "read",
        "Read a text's every state through a relation's operator, as a heat map (the attribute lens).",
        "read:run",
        options.Read,
    ),
    _study(
        "logit-lens",
        "When a fact's answer appears: the logit lens at every depth, and what each block adds to it.",
        "logit_lens:run",
    ),
    _study(
        "tracing",
        "Put one fact's states into another's prompt, at every depth: where the answer comes with them.",
        "tracing:run",
    ),
    _study("data", "Statistics of the relations, counted with the model's tokenizer.", "facts:statistics"),
    _study(
        "known",
        "List the facts that the model knows and does not know, over several draws of examples.",
        "facts:known",
        options.Known,
    ),
    _study(
        "concepts",
        "Tell facts and edit them by directions of objects, which the operator's inverse gives.",
        "concepts:run",
        options.Concepts,
    ),
    _study(
        "integral",
        "The Jacobian along the segment between two subjects' states, beside the exact change.",
        "integral:run",
        options.Integral,
    ),
    _study(
        "cosines",
        "Cosines between the operators of all relations, beside halves of one and shuffled columns.",
        "cosines:run",
        options.Cosines,
    ),
    _study(
        "variance",
        "Split the variance of Jacobians into subject and context, and predict faithfulness from it.",
        "variance:run",
        options.Variance,
    ),
    _study("norms", "Sizes of W and b, and how far the examples' Jacobians differ.", "norms:run"),
)
EXPERIMENTS = (RUN, *STUDIES)
