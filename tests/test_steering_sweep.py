"""Sweeps and accuracy: rows at once = one forward a cell, scores of options, answers read, controls."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from families import transformers_model
from recurrent import recurrent_model
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.data.questions import Question, generate
from interpcore.errors import Refused
from interpcore.model.generic import GenericModel
from interpcore.steering import accuracy, asking
from interpcore.steering.choice import generated, option_scores, text_losses
from interpcore.steering.experiments import ACCURACY, SWEEP
from interpcore.steering.interventions import Intervention, Part
from interpcore.steering.options import AccuracyOptions, StatesOptions, SweepOptions
from interpcore.steering.prompts import Item, asked, is_right, items, read_answer
from interpcore.steering.study import open_states
from interpcore.steering.sweep import sweep_scores

QUESTION = generate(2)[0]


def some_items(count=5, multi=True):
    """Questions of different lengths; options of one to three tokens, two of which begin alike."""
    draw = torch.Generator().manual_seed(7)

    def ids(n):
        return tuple(torch.randint(1, 61, (n,), generator=draw).tolist())

    found = []
    for i in range(count):
        options = ((3,), (4, 5), (4, 6), (7, 8, 9)) if multi and i % 2 else ((3,), (5,), (9,))
        found.append(Item(QUESTION, ids(3 + 2 * (i % 3)), options))
    return found


def by_hand(model, item, edits_of):
    """Log-probability of each option, one forward each, softmax over the whole."""
    scores = []
    for option in item.options:
        whole = torch.tensor([item.prompt + option])
        logits = model.forward(whole, edits=edits_of(len(item.prompt), whole.shape[1])).logits[0]
        chances = logits.log_softmax(-1)
        at = range(len(item.prompt) - 1, whole.shape[1] - 1)
        scores.append(sum(float(chances[p, t]) for p, t in zip(at, option, strict=True)))
    return scores


MODELS = {
    "gpt2": lambda: interpcore.load(transformers_model("gpt2", dtype=torch.float64)),
    "gemma3": lambda: interpcore.load(transformers_model("gemma3", dtype=torch.float64)),
    "recurrent": lambda: recurrent_model(2),
    "generic": lambda: GenericModel.wrap(transformers_model("gpt2", dtype=torch.float64), "gpt2"),
}


EDITS = [
    ("add", "resid", "onward"),
    ("clamp", "mlp_out", "all"),
    ("amplify", "attn_out", "last"),
    ("add", "resid", "answer"),
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind, site, positions", EDITS)
def test_rows_at_once_are_one_forward_a_cell(name, kind, site, positions):
    model = MODELS[name]()
    asked_items, d = some_items(), model.spec.d_model
    depths = [1, 2] if site != "resid" else [1, model.plan.n_calls]
    draw = torch.Generator().manual_seed(2)
    units = torch.nn.functional.normalize(torch.randn(9, d, generator=draw, dtype=torch.float64), dim=-1)
    vectors = {depth: units[depth] for depth in depths}
    coefficients = (0.0, 2.0, -1.5)
    found = sweep_scores(
        model, asked_items, vectors, coefficients, site=site, kind=kind, positions=positions, batch=20
    )
    whole = sweep_scores(model, asked_items, vectors, coefficients, site=site, kind=kind, positions=positions)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9, equal_nan=True)
    tolerance = 1e-8 if name != "generic" else 2e-5
    moved = 0.0
    for a, depth in enumerate(depths):
        for b, c in enumerate(coefficients):
            part = Part(site, depth, kind, vectors[depth], c, positions)
            one = Intervention((part,)) if c else Intervention()
            cell = option_scores(model, asked_items, one, rows=3)
            for i, item in enumerate(asked_items):

                def edits(n, total, one=one):
                    return one.edits(model, torch.tensor([n]), torch.tensor([total]))

                want = by_hand(model, item, edits)
                assert cell[i] == pytest.approx(want, abs=tolerance)
                assert found[a, b, i, : len(want)].tolist() == pytest.approx(want, abs=tolerance)
                assert found[a, b, i, len(want) :].isnan().all()
                moved = max(
                    moved,
                    abs(
                        found[a, b, i, -1 if len(want) == 4 else 0]
                        - found[a, 0, i, -1 if len(want) == 4 else 0]
                    ),
                )
    assert moved > 1e-4  # the edits do something


def test_a_sweep_takes_no_ablation_and_no_other_site():
    model = MODELS["gpt2"]()
    for site, kind in (("resid", "ablate"), ("z", "add")):
        with pytest.raises(Refused, match="A sweep edits"):
            sweep_scores(model, some_items(1), {1: torch.ones(32)}, (1.0,), site=site, kind=kind)


def test_losses_of_the_second_half_and_texts_are_those_of_each_alone():
    model = MODELS["gemma3"]()
    one = Intervention((Part("resid", 2, "add", torch.ones(32).double(), 0.5, "onward"),))
    draw = torch.Generator().manual_seed(4)
    texts = [torch.randint(1, 61, (n,), generator=draw).tolist() for n in (8, 5, 11)]
    found = text_losses(model, texts, one)
    for text, loss in zip(texts, found, strict=True):
        n = len(text) // 2
        edits = one.edits(model, torch.tensor([n]), torch.tensor([len(text)]))
        chances = model.forward(torch.tensor([text]), edits=edits).logits[0].log_softmax(-1)
        want = -sum(float(chances[p - 1, text[p]]) for p in range(n, len(text))) / (len(text) - n)
        assert loss == pytest.approx(want)
    tiny = interpcore.load("tiny-llama")
    questions = items(tiny, generate(5, seed=3), answers="generate", template="Q: {question}\nA:")
    steer = Intervention((Part("resid", 2, "add", torch.ones(128), 0.3, "onward"),))
    for item, text in zip(questions, generated(tiny, questions, steer, 6), strict=True):
        assert generated(tiny, [item], steer, 6) == [text]


@pytest.mark.parametrize(
    "text, letter",
    [
        ("so the answer is (C).", "C"),
        ("The answer is D", "D"),
        ("Answer: B", None),
        ("answer is (K)", None),
        ("The answer is (A). The answer is (B).", "A"),
        ("the answer is (E)", None),  # of a question with four options
        ("", None),
    ],
)
def test_answers_are_read_as_published_and_never_drawn(text, letter):
    assert read_answer(text, QUESTION) == letter
    assert is_right(letter, replace(QUESTION, answer="C")) == (letter == "C")


def test_answers_in_words():
    sums = Question(0, "How many?", (), "1005", None, "", "gsm8k", 1.0)
    assert read_answer("First 7, then 1,005.", sums) == "1005" and is_right("1005.0", sums)
    assert read_answer("none", sums) is None and not is_right("7", sums)
    who = Question(0, "Who?", (), "Ann", None, "", "popqa", 0.0, accepted=("Ann Lee", "A. Lee"))
    assert is_right(read_answer("It was ann lee, I think", who), who) and read_answer("Bob", who) is None


def test_prompts_are_the_published_ones():
    q = Question(1, "Why?", ("x", "y"), "B", 1, "law", "s", None)
    e = replace(q, question="How?", answer="A", answer_index=0)
    assert asked(q, "generate", "Q: {question}\nA: ", [e]) == (
        "Q: How?\nOptions are:\n(A): x\n(B): y\nA: The answer is (A).\n\n"
        "Q: Why?\nOptions are:\n(A): x\n(B): y\nA:"
    )
    assert asked(q, "letters", "Q: {question}").endswith("(B): y\nA: The answer is (")
    assert asked(q, "options", "Q: {question}\nA:", [e], "Think. ") == "Think. Q: How?\nA: x\n\nQ: Why?\nA:"
    tiny = interpcore.load("tiny")
    (item,) = items(tiny, [QUESTION], answers="options", template="Q: {question}\nA:")
    for option, text in zip(item.options, QUESTION.options, strict=True):
        assert tiny.tokenizer.decode(option) == f" {text}"
    with pytest.raises(Refused, match="has no options to score"):
        items(tiny, [replace(q, options=(), answer_index=None)], answers="options", template="{question}")
    with pytest.raises(Refused, match="positions for 256"):
        items(tiny, [replace(q, question="a " * 400)], answers="options", template="{question}")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    model, out = interpcore.load("tiny"), tmp_path_factory.mktemp("steering") / "directions"
    with open_states(model, out, StatesOptions(questions="tiny:60", shuffles=2)) as study:
        study.find("mean")
    return model, out


def test_the_sweep_is_the_accuracy_of_each_cell(found, tmp_path):
    model, out = found
    options = SweepOptions(
        questions="tiny:60",
        directions=str(out),
        depths=(1, -1),
        coefficients=(-2.0, 3.0),
        part="test",
        batch=40,
    )
    with SWEEP.open(model, tmp_path / "sweep", options, progress=False) as study:
        report = SWEEP.run(study)
    assert (tmp_path / "sweep/artifacts/figures/sweep.png").stat().st_size > 2000
    table = report.table.set_index(["depth", "coefficient", "subset"])
    given = {"questions": "tiny:60", "directions": str(out), "controls": 1, "neutral_texts": 4}
    for depth in (1, 4):
        asks = AccuracyOptions(**given, depths=(depth,), coefficients=(-2.0, 3.0), prompt="Think.\\n")
        with ACCURACY.open(model, tmp_path / f"accuracy {depth}", asks, progress=False) as study:
            cells = ACCURACY.run(study).table.set_index(["condition", "coefficient", "subset"])
        for c in (-2.0, 3.0):
            for subset in asking.SUBSETS:
                a, b = table.loc[(depth, c, subset)], cells.loc[("direction", c, subset)]
                assert (a.right, a.n, a.difference) == (b.right, b.n, b.difference)
                assert a.chance == pytest.approx(b.chance, abs=1e-5)
    plain = cells.loc[("plain", 0.0, "all")]
    assert plain.right > 0.8 and pd.isna(plain.off_target_difference) and pd.isna(plain.difference)
    assert set(cells.index.get_level_values(0)) == {"plain", "prompt", "direction", "random 0", "shuffled 0"}
    assert (cells.right_low <= cells.right).all() and (cells.right <= cells.right_high).all()


def test_controls_of_a_study_are_of_equal_length_and_of_other_directions(found, tmp_path):
    model, out = found
    options = AccuracyOptions(questions="tiny:60", directions=str(out), depths=(2,), coefficients=(1.5,))
    with ACCURACY.open(model, tmp_path / "run", options, progress=False) as study:
        names = [c["condition"] for c in study.conditions()]
        assert names == ["plain", "direction", "random 0", "random 1", "random 2", "shuffled 0", "shuffled 1"]
        parts = {n: study.condition(n, 1.5).parts[0] for n in names[1:]}
        length = float(study.directions.norms["resid"][2])
        for name, part in parts.items():
            assert float(part.vector.norm()) == pytest.approx(length) and part.coefficient == 1.5
            cosine = torch.cosine_similarity(part.vector, parts["direction"].vector, dim=0)
            assert float(cosine) == pytest.approx(1) if name == "direction" else abs(float(cosine)) < 0.9
        shuffled = study.directions.shuffled["resid"][1, 2]
        cosine = torch.cosine_similarity(parts["shuffled 1"].vector, shuffled, dim=0)
        assert float(cosine) == pytest.approx(1)


def test_measures_pair_the_same_questions():
    questions = generate(4, seed=1)  # recall, reasoning in turn
    plain = asking.Answers([True, True, False, False], [0.9, 0.8, 0.2, 0.1])
    after = asking.Answers([True, False, True, False], [0.9, 0.3, 0.7, 0.1])
    rows = {row["subset"]: row for row in asking.measured(questions, after, plain)}
    assert rows["all"]["difference"] == 0 and rows["all"]["p"] == 1
    assert rows["recall"]["difference"] == 0.5 and rows["reasoning"]["difference"] == -0.5
    assert rows["recall"]["chance_difference"] == pytest.approx(0.25)
    scored = asking.scored([Item(questions[0], (1,), ((1,), (2,)))], [[math.log(0.1), math.log(0.3)]])
    index = questions[0].answer_index
    if index < 2:
        assert scored.chance[0] == pytest.approx([0.25, 0.75][index])


def test_generated_answers_say_how_many_were_not_read(found, tmp_path):
    model, out = found
    options = AccuracyOptions(
        questions="tiny:60",
        directions=str(out),
        depths=(2,),
        answers="generate",
        controls=0,
        new_tokens=4,
        neutral_texts=4,
    )
    with ACCURACY.open(model, tmp_path / "run", options, progress=False) as study:
        table = ACCURACY.run(study).table
    assert (table.unparsed > 0.5).all() and (table.right <= 1 - table.unparsed).all()


def test_what_cannot_be_asked_is_refused_first(found, tmp_path):
    model, out = found
    (tmp_path / "empty").mkdir()
    for given, said in (
        ({"directions": None}, "either --directions"),
        ({"depths": ()}, "at which depth"),
        ({"directions": str(tmp_path / "none")}, "There are no directions"),
        ({"directions": str(tmp_path / "empty")}, "holds no directions"),
        ({"intervention": "x.pt", "directions": None}, "There is no file"),
    ):
        options = AccuracyOptions(
            **({"questions": "tiny:60", "directions": str(out), "depths": (2,)} | given)
        )
        with pytest.raises(Refused, match=said):
            options.check_data()
    for given, said in (
        ({"depths": (7,)}, "depths 0 to 4"),
        ({"site": "mlp_out"}, "not of mlp_out"),
        ({"shots": 90}, "examples"),
    ):
        options = AccuracyOptions(
            **({"questions": "tiny:60", "directions": str(out), "depths": (2,)} | given)
        )
        with pytest.raises(Refused, match=said):
            accuracy.open_accuracy(model, tmp_path / "run", options)
    with pytest.raises(Refused, match="other weights"):
        accuracy.open_accuracy(
            interpcore.load("tiny-s1"),
            tmp_path / "run",
            AccuracyOptions(questions="tiny:60", directions=str(out), depths=(2,)),
        )
    for given, said in (
        ({"answers": "generate"}, "A sweep scores"),
        ({"edit": "ablate"}, "no coefficient"),
        ({"site": "mlp_out"}, "not of mlp_out"),
    ):
        with pytest.raises(Refused, match=said):
            SWEEP.open(model, tmp_path / "run", SweepOptions(directions=str(out), **given))
    assert not (tmp_path / "run").exists()


def test_the_commands(found, tmp_path):
    _, out = found
    base = ["--questions", "tiny:60", "--directions", str(out), "--quiet"]
    typed = [
        "steering",
        "sweep",
        *base,
        "--depth",
        "1,2",
        "--coefficient",
        "-1,1",
        "--out",
        str(tmp_path / "s"),
    ]
    result = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert result.exit_code == 0 and "Best for reasoning" in result.output
    typed = ["steering", "accuracy", *base, "--depth", "2", "--controls", "1", "--neutral-texts", "3"]
    result = CliRunner().invoke(app, [*typed, "--out", str(tmp_path / "a")], catch_exceptions=False)
    assert result.exit_code == 0 and "off_target" in result.output
    assert (tmp_path / "a/artifacts/figures/accuracy.png").stat().st_size > 2000
