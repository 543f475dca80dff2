"""Token passes whose forwards multiply in bfloat16: float32 is left as it was, and the error told holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from correlated_models import correlated_models, correlated_shards
from families import transformers_model
from summary_case import CONTEXT, expect_same_bits, run, shards

import interpcore
from interpcore.errors import Refused
from interpcore.model.generic import GenericModel
from interpcore.model.projection import Projection
from interpcore.model.rounded import Rounded, in_precision
from interpcore.neurons.correlation.correlate import Settings, Study, correlate
from interpcore.neurons.correlation.rounding import rounding_error as correlation_error
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.mlp_sides import PILOT_TOKENS, mlp_sides
from interpcore.neurons.statistics.rounding import rounding_error, rounding_errors
from interpcore.neurons.statistics.summary import Summary, merge_summaries
from interpcore.runs import RunError

HALF = Statistics(top=3, precision="bfloat16")
FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2")


def load(family: str):
    return interpcore.load(transformers_model(family, dtype=torch.float32))


@pytest.fixture(scope="module")
def gpt2():
    return load("gpt2")


def test_a_projection_rounds_operands_and_product_and_adds_its_bias_in_full():
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 64, generator=draw), torch.randn(32, 64, generator=draw).t()
    bias = 1000 + torch.randn(32, generator=draw)
    rounded = Rounded(weight, bias, "bfloat16")
    product = x.bfloat16().double() @ weight.bfloat16().double()
    off = (rounded(x).double() - bias - product).abs()
    assert rounded(x).dtype == torch.float32
    assert bool((off <= 2**-8 * product.abs() + 1e-3).all())  # half a unit of the product, and of 1000
    exact = Projection(weight, bias)(x)
    assert not torch.allclose(rounded(x), exact, rtol=0, atol=1e-3)
    assert rounded.rounded is rounded.rounded
    assert torch.equal(rounded.outputs(lambda y: y[..., 8:16])(x), rounded(x)[..., 8:16])


def test_float32_is_the_model_itself_and_says_nothing_new(gpt2, tmp_path):
    assert in_precision(gpt2, "float32") is gpt2
    plain, asked = (
        run(gpt2, tmp_path / name, statistics)
        for name, statistics in (("plain", Statistics(top=3)), ("asked", replace(HALF, precision="float32")))
    )
    expect_same_bits(plain, asked)
    assert plain.card.key == asked.card.key
    for folder in (plain.folder, asked.folder):
        said = json.loads(next(folder.glob("*.json")).read_text())
        assert "precision" not in said["arguments"]["statistics"] and "rounding_error" not in said


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_float32_within_the_error(family, tmp_path):
    """Over the tokens that the error is measured on, mean and standard deviation keep its bound."""
    model, few = load(family), shards(PILOT_TOKENS // CONTEXT).with_mask([])
    errors = rounding_errors(model, few, "bfloat16")
    full, half = (
        run(model, tmp_path / statistics.precision, statistics, shards=few)
        for statistics in (Statistics(top=3), HALF)
    )
    for depth in range(full.n_layers):
        one, other = (summary.moments(depth)[0] for summary in (full, half))
        spread = one.variance.sqrt()
        bound = (errors[depth] + 1e-6) * spread
        assert 1e-4 < errors[depth].square().mean().sqrt() < 0.1
        assert bool(((other.mean - one.mean).abs() <= bound).all())
        assert bool(((other.variance.sqrt() - spread).abs() <= bound).all())
        assert not torch.equal(one.mean, other.mean)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_that_is_told_is_that_of_all_tokens(family, tmp_path):
    model = load(family)
    told = run(model, tmp_path, HALF).card.rounding_error
    tokens = shards()
    ids = tokens.sequences(0, tokens.n_sequences)
    kept = tokens.mask(ids).flatten()
    assert int(kept.sum()) > 1.5 * PILOT_TOKENS
    layers = range(model.plan.n_calls)
    full, half = (
        mlp_sides(in_precision(model, precision), ids, layers, ("pre",))
        for precision in ("float32", "bfloat16")
    )
    errors = []
    for depth in layers:
        one, other = (sides[depth]["pre"][kept].double() for sides in (full, half))
        off = (other - one).square().mean(0) / one.var(0, correction=0)
        errors.append(float(off.mean().sqrt()))
    assert told == rounding_error(model, tokens, "bfloat16")
    assert 0.5 < told / max(errors) < 2


def test_a_folder_of_one_precision_refuses_the_other_and_goes_on_in_its_own(gpt2, tmp_path):
    half = run(gpt2, tmp_path / "half", HALF)
    with pytest.raises(RunError, match="precision"):
        run(gpt2, tmp_path / "half", Statistics(top=3))
    run(gpt2, tmp_path / "full", Statistics(top=3))
    with pytest.raises(RunError, match="precision"):
        run(gpt2, tmp_path / "full", HALF)
    again = run(gpt2, tmp_path / "half", HALF)
    expect_same_bits(half, again)
    assert again.card.rounding_error == half.card.rounding_error


def test_parts_merge_and_keep_the_error(gpt2, tmp_path):
    whole = run(gpt2, tmp_path / "whole", HALF)
    parts = [run(gpt2, tmp_path / str(span[0]), HALF, span=span).folder for span in ((0, 16), (16, len_of()))]
    merged = merge_summaries(parts, tmp_path / "merged")
    assert merged.card.rounding_error == whole.card.rounding_error
    for depth in range(whole.n_layers):
        one, other = (summary.moments(depth)[0] for summary in (whole, merged))
        torch.testing.assert_close(other.mean, one.mean, rtol=1e-12, atol=1e-12)
        assert torch.equal(one.maximum, other.maximum)
    assert Summary.complete(tmp_path / "merged")


def len_of() -> int:
    return shards().n_sequences


def test_neurons_that_do_not_vary_have_no_error(gpt2):
    still = gpt2.block(0)
    up = still.mlp.up
    dead = Projection(up.weight * 0, up.bias)
    block = replace(still, mlp=replace(still.mlp, up=dead))
    model = replace(gpt2, modules={**gpt2.modules, "block.0": block})
    errors = rounding_errors(model, shards(), "bfloat16")
    assert bool((errors[0] == 0).all()) and bool((errors[1] > 0).all())


def test_correlations_of_rounded_products_are_off_by_what_is_told():
    models, tokens = correlated_models()[:2], correlated_shards()
    full, half = (
        correlate(models, tokens, Settings(rotation=None, precision=precision), names=["one", "two"])
        for precision in ("float32", "bfloat16")
    )
    settings = Settings(rotation=None, precision="bfloat16")
    told = correlation_error(Study(models, tokens, settings, ["one", "two"]))
    off = (half.partners[0, 1].maximum - full.partners[0, 1].maximum).square().mean().sqrt()
    assert 0.2 < told * (PILOT_TOKENS / full.n_tokens) ** 0.5 / float(off) < 5
    assert told < 1e-3
    same = Settings(rotation=None)
    assert correlation_error(Study(models, tokens, same, ["one", "two"])) == 0


def test_what_cannot_be_rounded_is_refused(tmp_path):
    adapter = GenericModel.wrap(transformers_model("llama", dtype=torch.float32), "some-model")
    with pytest.raises(Refused, match="products are its own"):
        run(adapter, tmp_path / "adapter", HALF)
    wide = interpcore.load(transformers_model("gpt2", dtype=torch.float64))
    with pytest.raises(Refused, match="of a float32 model"):
        run(wide, tmp_path / "wide", HALF)
    with pytest.raises(Refused, match="one of float32, bfloat16"):
        run(wide, tmp_path / "wide", replace(HALF, precision="half"))


def test_the_command_says_the_error(tmp_path: Path):
    pytest.importorskip("pandas")
    from typer.testing import CliRunner

    from interpcore.cli import app

    shards_folder = tmp_path / "tokens"
    made = ["neurons", "tokens", "tiny", "--context", "64", "--documents", "120", "--out", str(shards_folder)]
    assert CliRunner().invoke(app, made).exit_code == 0
    asked = ["neurons", "summarize", "--model", "tiny", "--tokens", str(shards_folder), "--no-by-label"]
    out = ["--out", str(tmp_path / "run"), "--quiet"]
    said = CliRunner().invoke(app, [*asked, "--precision", "bfloat16", *out])
    assert said.exit_code == 0, said.output
    assert "rounding_error 0.0" in " ".join(said.output.split())
    correlated = ["neurons", "correlate", *asked[2:], "--partner", "tiny-s1", "--precision", "bfloat16"]
    told = CliRunner().invoke(app, [*correlated, "--universal", "0.3", *out])
    assert told.exit_code == 0 and "Products of activations in bfloat16. rounding_error" in told.output
    refused = CliRunner().invoke(app, [*asked, *out])
    assert refused.exit_code != 0 and "precision" in str(refused.exception)
