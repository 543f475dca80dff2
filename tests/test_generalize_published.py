"""What published counts support, and the command that says so."""

from __future__ import annotations

import pytest
from scipy.stats import beta
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.generalize.published import PUBLISHED, named, replay
from interpcore.generalize.suites import SUITES, find_suite


def test_published_counts_support_what_their_exact_intervals_say():
    """Only the replication's 5 of 19 decides anything against 0.6: it fails."""
    found = {row["name"]: row for row in replay().to_dict("records")}
    assert {row["supported"] for row in found.values()} == {"INCONCLUSIVE", "FAIL", "no test"}
    assert [name for name, row in found.items() if row["supported"] == "FAIL"] == ["re-replication"]
    for each in PUBLISHED:
        if each.of is None:
            continue
        low = beta.ppf(0.025, each.hits, each.of - each.hits + 1) if each.hits else 0.0
        high = beta.ppf(0.975, each.hits + 1, each.of - each.hits) if each.hits < each.of else 1.0
        assert (found[each.name]["low"], found[each.name]["high"]) == pytest.approx((low, high))


def test_every_published_trial_is_restated_by_one_of_ours():
    trials = {(name, t.id) for name in SUITES for t in find_suite(name)[1]}
    assert {(each.suite, each.trial) for each in PUBLISHED} <= trials


def test_an_unknown_published_trial_is_told():
    with pytest.raises(Refused, match="re-gt1"):
        named("re-gt9")


def test_replay_prints_and_asks_for_what_a_run_needs():
    runner = CliRunner()
    got = runner.invoke(app, ["generalize", "replay"])
    assert got.exit_code == 0 and "re-demo" in got.output and "majority" in got.output
    got = runner.invoke(app, ["generalize", "replay", "--run"])
    assert isinstance(got.exception, Refused) and "--out" in str(got.exception)
