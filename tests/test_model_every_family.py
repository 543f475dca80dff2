"""Every causal language model of transformers, tiny and random: right, or refused in a sentence."""

from __future__ import annotations

import pytest
from every_family import families, try_family


@pytest.mark.slow  # 5 minutes
def test_no_family_is_silently_wrong():
    rows = [try_family(family) for family in families()]
    assert {row.family: row.wrong for row in rows if row.wrong} == {}
    assert sum(row.path == "adapter" for row in rows) >= 60
    assert all(row.reason for row in rows if row.path == "refused")


@pytest.mark.parametrize("family", ["cohere", "nemotron", "biogpt"])
def test_a_few_of_them(family):
    row = try_family(family)
    assert row.path == "adapter" and not row.wrong and {"embed", "resid", "logits"} <= set(row.sites)
