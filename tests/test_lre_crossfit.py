"""Cross-fitting: halves by subject, choices on one half, reports on the other."""

from __future__ import annotations

import torch

from interpcore.lre.crossfit import by_depth, choose, cross_fit, make_folds


def test_halves_keep_subjects_together_and_swap():
    subjects = [f"s{i // 2}" for i in range(40)]
    known = torch.arange(40) % 5 > 0
    folds = make_folds(subjects, known, seed=1)
    a, b = folds
    assert torch.equal(a.report, ~b.report) and not (a.choose & a.report).any()
    assert torch.equal(a.choose | b.choose, known)
    for fold in folds:
        inside = {s for s, r in zip(subjects, fold.report.tolist(), strict=True) if r}
        outside = {s for s, r in zip(subjects, fold.report.tolist(), strict=True) if not r}
        assert not inside & outside
    again = make_folds(subjects, known, seed=1)
    assert all(torch.equal(x.report, y.report) for x, y in zip(folds, again, strict=True))
    assert not torch.equal(make_folds(subjects, known, seed=2)[0].report, a.report)


def test_two_known_subjects_are_in_both_halves():
    known = torch.tensor([True, False, False, True, False])
    for seed in range(8):
        a, b = make_folds(list("abcde"), known, seed)
        assert a.choose.sum() == b.choose.sum() == 1


def test_paper_chooses_on_what_it_reports():
    known = torch.tensor([True, False, True])
    (fold,) = make_folds(list("abc"), known, 0, "paper")
    assert torch.equal(fold.choose, known) and fold.report.all()


def test_the_choice_is_the_first_best_depth_and_the_middle_of_its_best_settings():
    hits = torch.zeros(3, 5, 4, dtype=torch.bool)
    hits[1, 1:4] = True
    hits[2] = True
    assert choose(hits) == (1, 2)
    assert choose(torch.zeros(3, 5, 4, dtype=torch.bool)) == (0, 2)


def test_noise_is_not_reported_as_skill():
    """Settings that hit at random: the best of many looks good where it was chosen, not on the other half."""
    hits = torch.rand(6, 20, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    known = torch.ones(40, dtype=torch.bool)
    subjects = [str(i) for i in range(40)]
    fitted = [cross_fit(hits, make_folds(subjects, known, seed))[0].double().mean() for seed in range(20)]
    paper, _ = cross_fit(hits, make_folds(subjects, known, 0, "paper"))
    assert 0.2 < float(torch.stack(fitted).mean()) < 0.4 < float(paper.double().mean())


def test_each_prompt_is_reported_at_the_other_half_s_choice():
    known = torch.ones(8, dtype=torch.bool)
    folds = make_folds([str(i) for i in range(8)], known, 0)
    hits = torch.zeros(2, 3, 8, dtype=torch.bool)
    hits[0, 0, folds[0].choose] = True  # chosen by the first half, no use to the second
    hits[1, 2, folds[1].choose] = True
    outcome, choices = cross_fit(hits, folds)
    assert choices == [(0, 0), (1, 2)] and not outcome.any()
    assert by_depth(hits, folds).shape == (2, 8)
