"""The suite `neurons` with known universal neurons: percentiles, labels, tokens, controls."""

from __future__ import annotations

import pytest
import torch

import interpcore
from interpcore.errors import Refused
from interpcore.generalize import Options, open_trials
from interpcore.neurons import trials_context
from interpcore.neurons.trials import SUITE
from interpcore.neurons.trials_context import Settings, joined, without_each

SETTINGS = Settings(documents=160, heldout=20, tokens=300)
LEAST_TOKENS = 2000
"""Of moments, here: between what the corpus and the news have."""
CHOSEN = 12


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A run whose universal neurons are each layer's 12 with the highest kurtosis; none is correlated."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(trials_context, "LEAST_TOKENS", LEAST_TOKENS)
    model, other = interpcore.load("tiny"), interpcore.load("tiny-s1")
    out = tmp_path_factory.mktemp("neurons") / "run"
    options = Options(suite="neurons", trials=("N1", "N4-news", "N6", "N7", "N8", "N9"))
    with open_trials(
        model, out, options, suite=SUITE, settings=SETTINGS, new=[other], progress=False
    ) as opened:
        kurtosis = [m.kurtosis for m in context(opened, "N1").moments()]
        excess = torch.cat([(k >= k.topk(CHOSEN).values[-1]).double() for k in kurtosis])
        opened.setting.kept["excess", "trained"] = excess
        opened.setting.kept["excess", "untrained"] = torch.zeros_like(excess)
        yield opened
    monkeypatch.undo()


def context(study, trial):
    return SUITE.context(study.setting, SUITE.trials[[t.id for t in SUITE.trials].index(trial)])


@pytest.fixture(scope="module")
def outcomes(study):
    return {o.trial.id: o for o in study.outcomes()}


def test_percentiles_are_places_within_the_layer(study, outcomes):
    found = outcomes["N1"]
    layers = study.model.plan.n_calls
    width = len(study.setting.kept["excess", "trained"]) // layers
    best = [(width - i - 0.5) / width for i in range(CHOSEN)]
    assert sorted(found.measured.values) == pytest.approx(sorted(best * layers))
    assert found.verdict == "PASS" and found.own.n_units == CHOSEN * layers


def test_shuffled_labels_keep_their_number_in_each_layer_and_do_not_pass(study, outcomes):
    plain = context(study, "N1")
    own, shuffled = plain.universal(), plain.under("shuffled labels").universal()
    width = len(own) // study.model.plan.n_calls
    assert own.view(-1, width).sum(1).equal(shuffled.view(-1, width).sum(1)) and not own.equal(shuffled)
    controls = outcomes["N1"].controls
    assert controls["shuffled labels"].verdict != "PASS" and controls["untrained"].n_units == 0


def test_a_text_too_short_for_moments_gives_no_verdict(study, outcomes):
    short = outcomes["N4-news"]
    assert context(study, "N1").counted("news") < LEAST_TOKENS <= context(study, "N1").counted()
    assert short.verdict == "INCONCLUSIVE" and "moments need" in short.measured.facts["short"]


def test_more_neurons_are_universal_than_of_untrained_weights(outcomes):
    found = outcomes["N9"].measured
    assert sum(found.values) == found.facts["universal"] and found.facts["untrained"] == 0


@pytest.mark.parametrize(
    ("trial", "control"), [("N6", "rotated"), ("N7", "random basis"), ("N8", "shuffled labels")]
)
def test_what_a_statistic_is_compared_with_does_not_pass(outcomes, trial, control):
    assert outcomes[trial].controls[control].verdict in ("FAIL", "INCONCLUSIVE")
    assert outcomes[trial].controls[control].estimate is not None


def test_groups_of_documents_add_up_to_the_whole(study):
    groups = context(study, "N1").groups()[0]
    whole, parts = joined(groups), without_each(groups)
    assert all(
        torch.allclose(joined([groups[i]]).count + part.count, whole.count) for i, part in enumerate(parts)
    )
    values = []
    tap = interpcore.model.Tap("mlp_pre", 0)
    shards = context(study, "N1").shards()
    for _, tokens, counts in shards.blocks(8, 0, shards.n_sequences):
        values.append(study.model.forward(tokens, taps=[tap], logits_at=None).taps[tap][counts].double())
    x = torch.cat(values)
    x = x - x.mean(0)
    skew = x.pow(3).mean(0) / x.square().mean(0).pow(1.5)
    assert torch.allclose(whole.skewness, skew, rtol=1e-4, atol=1e-4)


def test_a_model_alone_is_told_to_bring_others(tmp_path):
    model, options = interpcore.load("tiny"), Options(suite="neurons", trials=("N9",))
    with open_trials(
        model, tmp_path / "run", options, suite=SUITE, settings=SETTINGS, progress=False
    ) as study:
        (alone,) = study.outcomes()
        assert alone.verdict == "ERROR" and "--on" in alone.why
        with pytest.raises(Refused, match="--on"):
            context(study, "N1").models  # noqa: B018
