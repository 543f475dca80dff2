"""Claims against tables: every statistic against pandas' own, what does not hold, and what is no claim."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from interpcore.errors import Refused, RunError
from interpcore.runs.claims import Claim, check_claims, read_claims
from interpcore.runs.frames import write_frame

FRAME = pd.DataFrame(
    {
        "name": ["a", "b", "c", "d"],
        "f": [0.2, 0.7, 0.9, 0.8],
        "c": [0.1, 0.6, 0.7, 0.9],
        "ok": [True, True, False, True],
    }
)


def claim(statistic, value, relation="=", **how):
    return Claim("said", "one", statistic, relation, value, **{"tolerance": 1e-9} | how)


@pytest.mark.parametrize(
    ("statistic", "condition", "value", "rows"),
    [
        ("share(f > 0.6)", "", 0.75, 4),
        ("share(f > 0.6)", "ok == true and c < 0.9", 0.5, 2),
        ("mean(f)", "", 0.65, 4),
        ("median(f)", "", 0.75, 4),
        ("minimum(c)", "f > 0.5", 0.6, 3),
        ("maximum(c)", "", 0.9, 4),
        ("count", "name != 'a'", 3, 3),
        ("value(f)", "name == 'c'", 0.9, 1),
        ("correlation(f, c)", "", FRAME.f.corr(FRAME.c), 4),
    ],
)
def test_statistics(statistic, condition, value, rows):
    one = claim(statistic, value, filter=condition)
    found, n = one.found(FRAME)
    assert found == pytest.approx(value) and n == rows and one.holds(found)
    assert not claim(statistic, value + 0.01).holds(found)
    assert claim(statistic, value - 0.01, "above").holds(found)
    assert not claim(statistic, value - 0.01, "below").holds(found)
    assert not one.holds(float("nan"))


@pytest.mark.parametrize(
    ("statistic", "condition", "said"),
    [
        ("variance(f)", "", "no statistic"),
        ("mean(x)", "", "not there: x"),
        ("correlation(f)", "", "columns"),
        ("share(x > 1)", "", "no condition on a column"),
        ("share(__import__('os'))", "", "no condition"),
        ("mean(f)", "f > b", "neither a number"),
        ("value(f)", "", "leaves 4"),
    ],
)
def test_what_is_no_claim_on_a_table(statistic, condition, said):
    with pytest.raises(Refused, match=said):
        claim(statistic, 1.0, filter=condition).found(FRAME)


def test_a_file_of_claims_against_the_tables_of_a_run(tmp_path):
    (tmp_path / "run" / "artifacts" / "tables").mkdir(parents=True)
    write_frame(tmp_path / "run" / "artifacts" / "tables" / "one", FRAME)
    said = [
        {"claim": "most", "table": "one", "statistic": "share(f > 0.6)", "relation": "above", "value": 0.5},
        {"claim": "all", "table": "tables/one", "statistic": "share(f > 0.6)", "relation": "=", "value": 1},
    ]
    (tmp_path / "claims.json").write_text(json.dumps(said))
    held, fell = check_claims(read_claims(tmp_path / "claims.json"), [tmp_path / "run"])
    assert held.holds and not fell.holds
    assert "'all' says share(f > 0.6) of tables/one is = 1 within 0; it is 0.75 of 4 rows" in str(fell)
    with pytest.raises(Refused, match="there is one"):
        check_claims([Claim("x", "two", "count", "=", 1)], [tmp_path / "run"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "no list of claims"),
        ("[]", "no list of claims"),
        ("[3]", "claim 1"),
        (
            '[{"claim": "a", "table": "t", "statistic": "count", "relation": "near", "value": 1}]',
            "is one of",
        ),
        ('[{"claim": "a", "table": "t", "statistic": "count", "relation": "=", "value": "1"}]', "value"),
        ('[{"claim": "a", "table": "t", "statistic": "count", "value": 1}]', "relation"),
        ('[{"claim": "", "table": "t", "statistic": "count", "relation": "=", "value": 1}]', "claim"),
    ],
)
def test_what_is_no_file_of_claims(content, said, tmp_path):
    (tmp_path / "claims.json").write_text(content)
    with pytest.raises((Refused, RunError), match=said):
        read_claims(tmp_path / "claims.json")
