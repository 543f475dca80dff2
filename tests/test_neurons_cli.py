"""`interpcore neurons` end to end on the shipped seeds: every verb, every kind of figure, resumed,
refused."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.data.tinyworld.models import model_folder
from interpcore.data.tokens import TokenShards
from interpcore.model.load import load
from interpcore.neurons.effects.saved import read_cache
from interpcore.neurons.options import LEFT_OUT, Options
from interpcore.neurons.partners import load_partners
from interpcore.neurons.published import COLUMNS
from interpcore.neurons.statistics.summary import Summary
from interpcore.neurons.study import open_study
from interpcore.neurons.study_tables import up_columns
from interpcore.neurons.weights.study import read_weights
from interpcore.runs import read_tensors

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

FIGURES = (
    "excess layers contrasts percentiles skewness mysteries next_class composition families alphabet "
    "positions entropy interventions deactivation deactivation_heads deactivation_path explained_unigram "
    "explained_symbol explained_subset"
).split()


def neurons(*words):
    return CliRunner().invoke(app, ["neurons", *map(str, words)], catch_exceptions=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with token shards of the tiny world: 30 sequences of 64 tokens, and more."""
    folder = tmp_path_factory.mktemp("neurons")
    made = neurons(
        "tokens", "tiny", "--documents", 120, "--context", 64, "--out", folder / "tokens", "--quiet"
    )
    assert made.exit_code == 0 and TokenShards.open(folder / "tokens").context == 64
    return folder


@pytest.fixture(scope="module")
def reported(base):
    """The whole study, once."""
    return report(base)


def report(base, *more):
    few = ["--unigram-least", 20, "--sequences", 2, "--universal", 0.3, "--quiet"]
    partner = ["--partner", "tiny-s1"]
    return neurons("report", "--tokens", base / "tokens", *partner, *few, "--out", base / "study", *more)


def test_tokens_typed_twice_are_made_once(tmp_path):
    words = ["tokens", "tiny", "--documents", 6, "--context", 32, "--out", tmp_path / "t", "--quiet"]
    first = neurons(*words)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").iterdir()}
    assert neurons(*words).output == first.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t").iterdir()} == made
    for more, said in ((["--documents", 7], "the source has other"), (["--seed", 1], "seed was 0 and is 1")):
        with pytest.raises(ValueError, match=said):
            neurons(*words, *more)


def test_the_report_draws_every_kind_of_figure(base, reported):
    assert reported.exit_code == 0 and "2048 neurons" in reported.output
    artifacts = base / "study" / "report" / "artifacts"
    drawn = {path.stem for path in (artifacts / "figures").glob("*.png")}
    assert set(FIGURES) <= drawn and any(name.startswith("class_") for name in drawn)
    page = (artifacts / "index.html").read_text()
    shown = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,', page)
    assert set(shown) == drawn
    for head in ("Universal neurons", "Entropy neurons", "Attention deactivation", "mean kurt"):
        assert head in page


def test_the_dataframe_has_the_published_columns(base, reported):
    table = pd.read_csv(base / "study" / "dataframe" / "artifacts" / "neuron_df.csv")
    assert tuple(table.columns[: len(COLUMNS)]) == COLUMNS and len(table) == 2048
    assert table[list(COLUMNS)].notna().all(axis=None)
    assert {"excess_se", "kurt_se", "frequency", "kurt_binned", "null_space", "family"} <= set(table.columns)
    assert (table.excess_corr - (table.mean_corr - table.mean_baseline)).abs().max() < 1e-9
    assert (table.l2_penalty - table.w_in_norm**2 - table.w_out_norm**2).abs().max() < 1e-9
    assert table.max_sim_model.eq("tiny-s1").all() and table.max_sim_layer.between(0, 3).all()
    # Both histograms and thresholds saw the same tokens as the moments.
    assert (table.tokens == table.tokens[0]).all() and (table.sparsity >= table.frequency).all()


def test_single_verbs_share_the_study_and_do_nothing_twice(base, reported):
    folder = base / "study"
    passes = [folder / "summary" / "artifacts" / "pass-0.safetensors"]
    passes += sorted((folder / "correlation" / "artifacts" / "sums").glob("*.safetensors"))
    assert len(passes) >= 3
    table = base / "study" / "dataframe" / "artifacts" / "neuron_df.parquet"
    before, times = table.read_bytes(), [path.stat().st_mtime_ns for path in passes]
    study = ["--tokens", base / "tokens", "--out", base / "study", "--quiet"]
    summarized = neurons("summarize", *study)
    assert summarized.exit_code == 0 and "tokens, 4 layers" in summarized.output
    correlated = neurons("correlate", "--partner", "tiny-s1", "--universal", 0.3, *study)
    assert correlated.exit_code == 0 and "of 2048 neurons" in correlated.output
    assert "shuffled |r| > 0.5" in correlated.output and "same neuron" in correlated.output
    assert neurons("weights", *study).exit_code == 0
    assert neurons("weights", *study[2:]).exit_code == 0  # the same folder without --tokens
    assert len(read_weights(base / "study" / "weights")) == 2048
    assert neurons("explain", "--unigram-least", 20, *study).exit_code == 0
    framed = neurons("dataframe", "--partner", "tiny-s1", "--universal", 0.3, *study)
    assert framed.exit_code == 0 and "neuron_df.csv" in framed.output
    assert [path.stat().st_mtime_ns for path in passes] == times and table.read_bytes() == before


def test_parts_of_a_summary_are_merged(base, tmp_path):
    study = ["--tokens", base / "tokens", "--out", tmp_path / "parts", "--quiet"]
    for options in (["--part", "1/1"], ["--merge"], []):
        done = neurons("summarize", *options, *study)
        assert done.exit_code == 0, done.output
        assert "tokens, 4 layers" in done.output
    assert (tmp_path / "parts" / "summary-1-of-1").is_dir()
    half = [*study[:2], "--out", tmp_path / "half", "--quiet"]
    assert neurons("summarize", "--part", "1/2", *half).exit_code == 0
    with pytest.raises(ValueError, match=r"summary-1-of-2 hold .* of .* sequences"):
        neurons("summarize", "--merge", *half)
    assert not (tmp_path / "half" / "summary").exists()
    for part, sentence in (("3/2", "Part 3/2 is none"), ("half", "no part such as 1/2")):
        with pytest.raises(ValueError, match=sentence):
            neurons("summarize", "--part", part, *study)


def test_correlations_in_parts_and_by_a_sketch_are_those_of_one_run(base, reported, tmp_path):
    whole = re.search(r"(\d+) of 2048 neurons", neurons("correlate", *same(base, base / "study")).output)
    parts = same(base, tmp_path / "parts")
    for part in ("1/2", "2/2"):
        done = neurons("correlate", "--part", part, *parts)
        assert done.exit_code == 0 and f"Sums of part {part}" in done.output
    merged = neurons("correlate", "--merge", *parts)
    assert whole[0] in merged.output
    read = [
        read_tensors(folder / "correlation" / "artifacts" / "partners" / "0-1.safetensors")[0]
        for folder in (base / "study", tmp_path / "parts")
    ]
    torch.testing.assert_close(read[0]["top"], read[1]["top"], rtol=0, atol=1e-9)
    sketched = neurons("correlate", "--sketch", 512, *parts)
    assert whole[0] in sketched.output and "estimates within 0.044" in sketched.output
    with pytest.raises(ValueError, match="has no parts of correlations"):
        neurons("correlate", "--merge", *same(base, tmp_path / "none"))


def same(base, out):
    return ["--partner", "tiny-s1", "--universal", 0.3, "--tokens", base / "tokens", "--out", out, "--quiet"]


def test_estimates_come_before_the_work(base, tmp_path):
    study = ["--tokens", base / "tokens", "--out", tmp_path / "none", "--estimate", "--quiet"]
    for verb in (["correlate", "--partner", "tiny-s1"], ["summarize"]):
        said = neurons(*verb, *study)
        assert said.exit_code == 0 and "disk" in said.output and "pass" in said.output
    assert not (tmp_path / "none").exists()


def test_sums_by_token_and_label_can_be_left_out(base, reported, tmp_path):
    few = ["--no-by-token", "--no-by-label", "--quiet"]
    study = ["--tokens", base / "tokens", "--out", tmp_path / "few", *few]
    assert neurons("summarize", *study).exit_code == 0
    summary = Summary.open(tmp_path / "few" / "summary")
    assert summary.statistics.by_token == () and summary.statistics.labels == ()
    whole = Summary.open(base / "study" / "summary")
    for one, other in zip(summary.moments(1), whole.moments(1), strict=True):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="need sums by token"):
        neurons("explain", *study)


def test_statistics_are_chosen_one_by_one(base, tmp_path):
    left = [word for kind in ("position", "errors", "previous") for word in ("--leave-out", kind)]
    study = ["--tokens", base / "tokens", "--out", tmp_path / "few", "--largest", "--no-by-label", *left]
    assert neurons("summarize", *study, "--quiet").exit_code == 0
    few = Summary.open(tmp_path / "few" / "summary")
    assert {part.kind for part in few.files} == {"moments", "histogram", "published", "top", "token"}
    by_token, examples = few.groups("token", 2), few.examples(2)
    shards = TokenShards.open(base / "tokens")
    tokens = shards.sequences(0, shards.n_sequences).flatten()
    first = torch.searchsorted(by_token.ids, tokens[examples.index[0]])
    assert torch.equal(by_token.largest.amax(0), examples.value[0])
    assert torch.equal(by_token.largest[first, torch.arange(len(first))], examples.value[0])
    neurons("view", 2, 80, *study, "--page", tmp_path / "page.html")
    assert "largest" in (tmp_path / "page.html").read_text()
    with pytest.raises(ValueError, match="by token and by position"):
        neurons("explain", *study)
    nothing = open_study(load("tiny"), tmp_path / "none", Options(leave_out=LEFT_OUT)).statistics
    assert nothing.kinds == ("moments", "labels") and nothing.by_token == ("token",)


def test_a_study_holds_one_model_and_nothing_else(base, reported):
    for words, said in (
        ([3, 120, "--model", "tiny-s1", "--out", base / "study"], "whose weights are not those of tiny-s1"),
        ([3, 120, "--out", base / "tokens"], "holds token shards"),
        ([3, 120, "--out", base / "study" / "summary"], "holds a single run"),
    ):
        with pytest.raises(ValueError, match=said):
            neurons("view", *words)


def test_view_shows_one_neuron(base, reported):
    shown = neurons("view", 2, 80, "--tokens", base / "tokens", "--out", base / "study", "--examples", 3)
    assert shown.exit_code == 0
    page = (base / "study" / "view" / "2.80.html").read_text()
    for head in (
        "In numbers",
        "Explained by",
        "Distribution",
        "Where it is most active",
        "Its partners",
        "raised",
    ):
        assert head in page
    assert page.count('class="text"') == 3 and "tiny-s1" in page and page.count("<img") == 3


def test_neurons_of_ones_own_choice(base, tmp_path):
    few = ["--tokens", base / "tokens", "--out", tmp_path / "own", "--quiet", "--sequences", 3]
    done = neurons("intervene", "--neurons", "3.5,1.7", "--values", "0,2", *few)
    assert done.exit_code == 0
    table = pd.read_csv(tmp_path / "own" / "intervene-3.5+1.7" / "artifacts" / "interventions.csv")
    assert sorted(table.kind.value_counts().items()) == [("fixed", 8), ("mean", 4), ("none", 1)]
    silent = neurons("intervene", "--neurons", "3.5", "--kind", "zero", "--site", "pre", *few)
    assert silent.exit_code == 0
    other = pd.read_csv(tmp_path / "own" / "intervene-zero-pre-3.5" / "artifacts" / "interventions.csv")
    assert other.kind.tolist() == ["none", "zero", "mean", "zero", "mean"]
    # gelu(0) = 0.
    for kind, same in (
        ("zero", (table.kind == "fixed") & (table.value == 0)),
        ("mean", table.kind == "mean"),
    ):
        expected = table[same & (table.layer == 3)].loss.tolist()
        assert other[other.kind == kind].loss.tolist() == pytest.approx(expected, abs=1e-6)
    assert neurons("intervene", "--neurons", "3.5", "--kind", "negate", *few).exit_code == 2
    done = neurons("deactivation", "--neurons", "0.470,1.7", "--first", 16, *few)
    assert done.exit_code == 0 and "random directions" in done.output
    heads = pd.read_csv(tmp_path / "own" / "deactivation-0.470+1.7" / "artifacts" / "heads.csv")
    assert len(heads) == (3 + 2) * 4
    cached = neurons(
        "cache", "--neurons", "2.80,0.1", "--tokens", base / "tokens", "--sequences", 3, "--quiet",
        "--stored", "float16", "--out", tmp_path / "own",
    )  # fmt: skip
    assert cached.exit_code == 0
    found = read_cache(tmp_path / "own" / "cache")  # a step of the study beside the others
    assert found.neurons == ((2, 80), (0, 1)) and found.post.dtype == torch.float16
    assert found.measures.loss[:, :-1].isfinite().all()


def test_gated_neurons_have_quadrants(base, tmp_path):
    out = ["--tokens", base / "tokens", "--out", tmp_path / "llama", "--quiet"]
    done = neurons("summarize", "--model", "tiny-llama", "--quadrants", *out)
    assert done.exit_code == 0 and "gate- up+" in done.output
    table = pd.read_parquet(tmp_path / "llama" / "quadrants" / "artifacts" / "quadrants.parquet")
    assert table.groupby(["layer", "neuron"]).frequency.sum().between(1 - 1e-9, 1 + 1e-9).all()
    columns = up_columns(Summary.open(tmp_path / "llama" / "summary").up_moments(0))
    assert set(columns) == {"up_mean", "up_var", "up_skew", "up_kurt"} and (columns["up_var"] > 0).all()


def test_published_tables_are_summarised_without_a_model(tmp_path):
    path = tmp_path / "universal.csv"
    path.write_text("layer,neuron,kurt,mean_corr,mean_baseline\n0,1,5,0.9,0.1\n1,2,7,0.3,0.1\n")
    shown = neurons("dataframe", "--from", path, "--out", tmp_path / "none")
    assert shown.exit_code == 0 and re.search(r"universal +1", shown.output)
    assert re.search(r"mean kurt +5", shown.output) and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dataframe", "--out", "x"], "needs --tokens, or a published table"),
        (["summarize", "--tokens", "nowhere", "--out", "x"], "holds no token shards"),
        (["view", "9", "0", "--out", "x"], "no neuron 9.0"),
        (["tokens", "nowhere", "--out", "x"], "no file or folder nowhere"),
    ],
)
def test_refusals_are_one_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["neurons", *words])
    assert refused.exit_code != 0 and sentence in str(refused.exception)
    assert "\n" not in str(refused.exception)


def test_a_partner_is_a_model_of_its_own(tmp_path):
    """A copy of the model under another name would make every neuron universal."""
    copy = str(shutil.copytree(model_folder("tiny"), tmp_path / "other"))
    tiny = interpcore.load("tiny", check=False)
    for names, said in (
        ([copy], f"--partner {copy} has the weights of tiny"),
        (["tiny-s1", copy], f"{copy} has the weights of tiny"),
        (["tiny-s1", str(shutil.copytree(model_folder("tiny-s1"), tmp_path / "s1"))], "weights of tiny-s1"),
    ):
        with pytest.raises(interpcore.errors.Refused, match=said):
            load_partners(names, tiny)
    assert len(load_partners(["tiny-s1"], tiny)) == len(load_partners([copy], tiny, latents=True)) == 1


@pytest.mark.slow
def test_the_tiny_seeds_end_to_end(tmp_path):
    """About 5 minutes: three seeds, 120 thousand tokens. Universal neurons fire seldom, with heavy tails and
    negative biases, as published."""
    assert neurons("tokens", "tiny", "--context", 128, "--out", tmp_path / "tokens", "--quiet").exit_code == 0
    done = neurons(
        "report", "--partner", "tiny-s1", "--partner", "tiny-s2", "--tokens", tmp_path / "tokens",
        "--unigram-least", 100, "--universal", 0.3, "--out", tmp_path / "study", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0
    table = pd.read_parquet(tmp_path / "study" / "dataframe" / "artifacts" / "neuron_df.parquet")
    universal = table[table.excess_corr > 0.3]
    assert 20 < len(universal) < 400 and (table.mean_corr > table.mean_baseline).mean() > 0.9
    rest = table[table.excess_corr <= 0.3]
    assert universal["kurt"].median() > rest["kurt"].median() + 1
    assert universal.frequency.median() < 0.7 * rest.frequency.median()
    assert universal.input_bias.median() < rest.input_bias.median()
