"""The experiments of this family, as commands and agents find them; on one study they share a folder."""

from interpcore.neurons import options as asked
from interpcore.runs.compared import Compared, Published
from interpcore.runs.experiment import Experiment
from interpcore.runs.options import Options

_SOURCE = "Gurnee et al. 2024, GPT-2 medium, its released table"
_COMPARED = Compared(
    table="neuron_df",
    keys=("layer", "neuron"),
    measures=(
        "mean",
        "var",
        "skew",
        "kurt",
        "sparsity",
        "w_in_norm",
        "w_out_norm",
        "in_out_sim",
        "excess_corr",
    ),
    unit="",
    by=("layer",),
    published_table="neuron_df",
    published=(
        Published(
            "share of neurons with excess correlation above 0.5",
            0.0123,
            "share(excess_corr > 0.5)",
            "",
            _SOURCE,
        ),
        Published("mean skewness of universal neurons", 1.100, "mean(skew)", "excess_corr > 0.5", _SOURCE),
        Published("mean kurtosis of universal neurons", 8.11, "mean(kurt)", "excess_corr > 0.5", _SOURCE),
        Published(
            "mean input bias of universal neurons", -0.486, "mean(input_bias)", "excess_corr > 0.5", _SOURCE
        ),
    ),
)
_STUDY = "--tokens runs/tokens-tiny --out runs/neurons-tiny"


def _experiment(name: str, sentence: str, example: str, asks: type[Options] | None) -> Experiment:
    return Experiment(
        name=f"neurons {name}",
        sentence=sentence,
        example=f"interpcore neurons {name} {example}",
        options=asked.Options,
        asks=asks,
        opens="interpcore.neurons.study:open_study",
        runs=f"interpcore.neurons.results:{name}",
        extra="neurons",
        verifies="interpcore.neurons.verify:checks",
        marks=("corpus", "statistics"),
        compares=_COMPARED,
    )


EXPERIMENTS = (
    _experiment(
        "summarize",
        "Moments, histograms, top examples, sums by position and token of every neuron, in one pass.",
        f"--model tiny {_STUDY}",
        asked.Summarize,
    ),
    _experiment(
        "correlate",
        "Correlate every neuron with every neuron of other models, and with rotated ones.",
        f"--model tiny --partner tiny-s1,tiny-s2 {_STUDY}",
        asked.Correlate,
    ),
    _experiment(
        "weights",
        "Norms, biases, cosines, vocabulary moments and composition with heads, on folded weights.",
        "--model tiny --out runs/neurons-tiny",
        asked.Weights,
    ),
    _experiment(
        "dataframe",
        "The neuron table with the published columns, everything it needs included; with --from and no "
        "--tokens it only summarises published tables.",
        f"--model tiny --partner tiny-s1,tiny-s2 --from universal.csv {_STUDY}",
        None,
    ),
    _experiment(
        "explain",
        "Which features of the token, the one before, its place and its subset explain each neuron.",
        f"--unigram-least 100 {_STUDY}",
        asked.Explain,
    ),
    _experiment(
        "fourier",
        "Which neurons are waves of a number's value (modular arithmetic): the frequency, and its share of "
        "the activation's variance.",
        f"--model tiny --modulus 10 {_STUDY}",
        asked.Fourier,
    ),
    _experiment(
        "intervene",
        "Change neurons and measure loss, entropy, rank and the final norm's scale, which can also be "
        "frozen; without --neurons those that look most like entropy neurons, and random controls.",
        f"--neurons 3.120,3.7 {_STUDY}",
        asked.Intervene,
    ),
    _experiment(
        "deactivation",
        "Which neurons switch attention heads off by sending them to the first token.",
        _STUDY,
        asked.Deactivation,
    ),
    _experiment(
        "cache",
        "Save neurons' activations at every token, with its loss, entropy and rank.",
        f"--neurons 3.120,0.7 {_STUDY}",
        asked.Cache,
    ),
    _experiment(
        "view",
        "One neuron's page: distribution, contexts, effects on the vocabulary, partners.",
        f"3 120 --model tiny {_STUDY}",
        asked.View,
    ),
    _experiment(
        "report",
        "The whole study: every step that is not done yet, every figure, one page.",
        f"--model tiny --partner tiny-s1,tiny-s2 --unigram-least 100 {_STUDY}",
        asked.Report,
    ),
)
