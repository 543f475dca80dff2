"""All skips, keeps and repeats of a model: together, as one batch that shares what plans agree on, and one
forward for each."""

import statistics
import time
from collections.abc import Callable

import torch
from pytest_benchmark.fixture import BenchmarkFixture

import interpcore
from interpcore.model import Model, Plan, Tap
from interpcore.model.many_plans import run_plans
from interpcore.surgery import plans as menu

ROWS, WIDTH, PAIRS = 8, 24, 9
MOST_RATIO = 0.55


def every_plan(intact: Plan) -> list[Plan]:
    """All skips, keep-first-n, and repeats x2 and x5."""
    made = (menu.skips(intact), menu.keeps(intact), menu.repeats(intact, 2), menu.repeats(intact, 5))
    return [plan for each in made for plan in each.values()]


@torch.no_grad()
def bench_many_plans(benchmark: BenchmarkFixture, report: Callable[[str], None]) -> None:
    model = interpcore.load("tiny", check=False)
    assert isinstance(model, Model)
    tokens = torch.randint(model.spec.vocab_size, (ROWS, WIDTH), generator=torch.Generator().manual_seed(0))
    plans, end = every_plan(model.plan), Tap("resid", -1)

    def alone() -> list[torch.Tensor]:
        runs = (model.with_plan(p).forward(tokens, taps=[end], logits_at=None).taps for p in plans)
        return [taps[end] for taps in runs]

    def together() -> list[torch.Tensor]:
        found = {n: resid for numbers, resid in run_plans(model, tokens, None, plans) for n in numbers}
        return [found[n] for n in range(len(plans))]

    for mine, theirs in zip(together(), alone(), strict=True):
        gap = (mine - theirs).norm(dim=-1) / theirs.norm(dim=-1)
        assert float(gap.max()) < 1e-5
    ratios = []
    for _ in range(PAIRS):
        spent = []
        for run in (together, alone):
            start = time.process_time()
            run()
            spent.append(time.process_time() - start)
        ratios.append(spent[0] / spent[1])
    ratio = statistics.median(ratios)
    report(f"{len(plans)} plans of {model.plan.n_calls} blocks together: {ratio:.2f} of one by one")
    assert ratio <= MOST_RATIO
    benchmark.pedantic(together, rounds=3)
