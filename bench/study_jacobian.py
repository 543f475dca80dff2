"""Cost of the Jacobian sweep against its own dense products and against autograd, one thread, CPU seconds.

    python bench/study_jacobian.py --d-model 384 --blocks 6
    python bench/study_jacobian.py --d-model 768 --blocks 12 --peer-depths 4
    python bench/study_jacobian.py --scaling --plot jacobian_scaling.png

Random GPT-2 weights, frozen; a 64-token prefix and 7 live tokens. The sweep's dense products are timed at
their best: each on the routine that is fastest for that very shape and layout (`sweep_products.py`).
Peers differentiate transformers' own model over a correctly copied cache, one depth at a time, over the same
depths as the published code: the token embedding and every block output but the last.
"""

import argparse
import copy
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from sweep_products import least_seconds, products_of

import interpcore
from interpcore.model import Model
from interpcore.model.jacobians import JacobianOperator
from interpcore.model.linearize import Rules

PREFIX, LIVE, REPEATS = 64, 7, 3


def main() -> None:
    """Run what the command line asks for and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-model", type=int, default=384)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--peer-depths", type=int, default=0, help="depths at which peers are timed (0: all)")
    parser.add_argument("--no-peers", action="store_true", help="only the sweep itself")
    parser.add_argument(
        "--scaling", action="store_true", help="cost against prompt, live tokens, depth and width"
    )
    parser.add_argument("--plot", type=Path, help="picture of --scaling")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = scaling(options.plot) if options.scaling else study(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def study(options: argparse.Namespace) -> dict[str, float]:
    """The table of one model shape."""
    hf, model = models(options.d_model, options.blocks)
    tokens = prompt(PREFIX + LIVE)
    every = functools.partial(interpcore.jacobians, model, tokens, source_position=PREFIX)
    figures: dict[str, float] = {}
    for name, sweep in (("all depths", every), ("one depth", functools.partial(every, source_depths=[0]))):
        products = products_of(sweep)
        figures[f"{name}: GFLOP of products"] = sum(p.operations * n for p, n in products.items()) / 1e9
        figures[f"{name}: products at their best (s)"] = best = least_seconds(products)
        figures[f"{name} (s)"] = taken = seconds(sweep)
        figures[f"{name} / products"] = taken / best
    figures |= without_matrix(model, tokens, figures["all depths (s)"])
    figures |= half_precision(model, tokens)
    if not options.no_peers:
        published = [0, *range(1, options.blocks)]
        ours = seconds(
            lambda: interpcore.jacobians(model, tokens, source_position=PREFIX, source_depths=[*published])
        )
        figures["published depths (s)"] = ours
        for name, total in peers(hf, model, tokens, options.blocks, options.peer_depths).items():
            figures[f"{name} (s)"], figures[f"{name} / ours"] = total, total / ours
    for name, value in figures.items():
        print(f"{name:32s} {value:12.4g}", flush=True)
    return figures


def models(d_model: int, blocks: int) -> tuple[Any, Model]:
    """A random GPT-2 with frozen weights, and ours on the same tensors."""
    config = transformers.GPT2Config(  # type: ignore[call-arg]
        vocab_size=1000,
        n_embd=d_model,
        n_layer=blocks,
        n_head=d_model // 64,
        n_positions=1024,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    model = interpcore.load(hf)
    assert isinstance(model, Model)
    return hf, model


def prompt(length: int) -> torch.Tensor:
    """[1, length] token ids."""
    return torch.randint(1000, (1, length), generator=torch.Generator().manual_seed(0))


def seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median CPU seconds of a few calls, after one that is not counted."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def without_matrix(model: Model, tokens: torch.Tensor, dense: float) -> dict[str, float]:
    """W s for 20 subjects at all depths, by one walk up, against forming every W."""
    depths = range(model.plan.n_calls + 1)
    op = JacobianOperator.of(model, tokens, source_position=PREFIX, source_depth=0)
    subjects = torch.randn(20, model.spec.d_model, generator=torch.Generator().manual_seed(1))
    got = op.at_depths(subjects, depths)
    full = interpcore.jacobians(model, tokens, source_position=PREFIX).values
    assert isinstance(full, torch.Tensor)
    expected = torch.einsum("dij,sj->dsi", full[0], subjects)
    assert float((got - expected).norm() / expected.norm()) < 1e-4
    taken = seconds(
        lambda: JacobianOperator.of(model, tokens, source_position=PREFIX, source_depth=0).at_depths(
            subjects, depths
        )
    )
    singly = sum(
        seconds(lambda d=d: interpcore.jacobians(model, tokens, source_position=PREFIX, source_depths=[d]), 1)  # type: ignore[misc]
        for d in depths
    )
    return {
        "20 products, all depths (s)": taken,
        "dense sweep / products": dense / taken,
        "dense, depth by depth / products": singly / taken,
    }


def half_precision(model: Model, tokens: torch.Tensor) -> dict[str, float]:
    """The sweep with bfloat16 products against the same with `torch.matmul` in float32, where the CPU has
    them."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return {}
    exact = interpcore.jacobians(model, tokens, source_position=PREFIX)
    half = interpcore.jacobians(model, tokens, source_position=PREFIX, rules=Rules(precision="bfloat16"))
    assert (
        isinstance(exact.values, torch.Tensor)
        and isinstance(half.values, torch.Tensor)
        and half.error is not None
    )
    gap = float((half.values - exact.values)[0, :-1].norm() / exact.values[0, :-1].norm())
    with routine("matmul"):
        plain = seconds(lambda: interpcore.jacobians(model, tokens, source_position=PREFIX))
    taken = seconds(
        lambda: interpcore.jacobians(model, tokens, source_position=PREFIX, rules=Rules(precision="bfloat16"))
    )
    return {
        "bfloat16 (s)": taken,
        "float32 matmul / bfloat16": plain / taken,
        "bfloat16 error of J": gap,
        "bfloat16 error estimated": half.error,
    }


def peers(hf: Any, model: Model, tokens: torch.Tensor, blocks: int, depths: int) -> dict[str, float]:
    """CPU seconds of each peer summed over the published depths; timed at some depths and fitted by a
    line."""
    cache = hf(tokens[:, :PREFIX], use_cache=True).past_key_values
    sources = list(range(blocks))  # 0: the embedding; i: output of block i-1
    timed = sources if not depths else [round(i * (blocks - 1) / (depths - 1)) for i in range(depths)]
    chunk = min(
        (32, 64, 128, None), key=lambda c: seconds(lambda: jacrev(hf, cache, tokens, blocks - 1, c), 1)
    )
    ways: dict[str, Callable[[int], torch.Tensor]] = {
        "functional.jacobian": lambda depth: vectorised(hf, cache, tokens, depth),
        "func.jacrev": lambda depth: jacrev(hf, cache, tokens, depth, chunk),
    }
    totals = {}
    for name, way in ways.items():
        expected = interpcore.jacobians(
            model, tokens, source_position=PREFIX, source_depths=[timed[-1]]
        ).values
        assert isinstance(expected, torch.Tensor)
        got = way(timed[-1])
        assert float((got - expected[0, 0]).norm() / expected.norm()) < 1e-4
        taken = [seconds(lambda d=depth, w=way: w(d)) for depth in timed]  # type: ignore[misc]
        slope, offset = statistics.linear_regression(timed, taken) if len(timed) > 1 else (0.0, taken[0])
        totals[name] = sum(taken) if not depths else sum(offset + slope * depth for depth in sources)
    return totals


def overwritten(
    hf: Any, cache: Any, tokens: torch.Tensor, depth: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The function "overwrite the source's state, rerun the suffix, read the last block" over a copied cache,
    and the state."""
    module = hf.transformer.wte if depth == 0 else hf.transformer.h[depth - 1]
    seen: dict[str, torch.Tensor] = {}

    def run(h: torch.Tensor | None) -> torch.Tensor:
        def write(_: object, __: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> object:
            state = out[0] if isinstance(out, tuple) else out
            seen["h"] = state[0, 0]
            if h is None:
                return out
            state = torch.cat([h[None, None], state[:, 1:]], 1)
            return (state, *out[1:]) if isinstance(out, tuple) else state

        def read(_: object, __: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            seen["z"] = (out[0] if isinstance(out, tuple) else out)[0, -1]

        handles = [module.register_forward_hook(write), hf.transformer.h[-1].register_forward_hook(read)]
        hf.transformer(tokens[:, PREFIX:], past_key_values=copy.deepcopy(cache), use_cache=True)
        for handle in handles:
            handle.remove()
        return seen["z"]

    run(None)
    return run, seen["h"].detach()


def vectorised(hf: Any, cache: Any, tokens: torch.Tensor, depth: int) -> torch.Tensor:
    """The published way: `torch.autograd.functional.jacobian(vectorize=True)`."""
    run, h = overwritten(hf, cache, tokens, depth)
    jacobian = torch.autograd.functional.jacobian(run, h, vectorize=True)
    assert isinstance(jacobian, torch.Tensor)
    return jacobian


def jacrev(hf: Any, cache: Any, tokens: torch.Tensor, depth: int, chunk: int | None) -> torch.Tensor:
    """`torch.func.jacrev`, in chunks of rows."""
    run, h = overwritten(hf, cache, tokens, depth)
    return torch.func.jacrev(run, chunk_size=chunk)(h)


class routine:
    """The product routine forced to one name for a while."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        import os

        os.environ["INTERPCORE_PRODUCT"] = self.name

    def __exit__(self, *_: object) -> None:
        import os

        del os.environ["INTERPCORE_PRODUCT"]


def scaling(plot: Path | None) -> dict[str, float]:
    """CPU seconds of the all-depth sweep against prompt length, live tokens, blocks and width, others held
    fixed."""
    base = {"prefix": 64, "live": 7, "blocks": 4, "d_model": 384}
    ranges = {
        "prefix": (16, 64, 256, 768),
        "live": (2, 4, 7, 14, 28),
        "blocks": (2, 4, 8),
        "d_model": (192, 384, 768),
    }
    figures: dict[str, float] = {}
    for name, values in ranges.items():
        for value in values:
            shape = base | {name: value}
            _, model = models(shape["d_model"], shape["blocks"])
            tokens = prompt(shape["prefix"] + shape["live"])
            sweep = functools.partial(
                interpcore.jacobians, model, tokens, source_position=shape["prefix"], reduce="mean"
            )
            taken = seconds(sweep)
            figures[f"{name}={value}"] = taken
            print(f"{name}={value:<6d} {taken:8.3f} s", flush=True)
    if plot:
        draw(figures, ranges, plot)
    return figures


def draw(figures: dict[str, float], ranges: dict[str, tuple[int, ...]], path: Path) -> None:
    """One panel per quantity varied."""
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(1, len(ranges), figsize=(13, 3), sharey=True, constrained_layout=True)
    names = {"prefix": "prefix tokens", "live": "live tokens", "blocks": "blocks", "d_model": "d_model"}
    for axis, (name, values) in zip(axes, ranges.items(), strict=True):
        axis.loglog(values, [figures[f"{name}={v}"] for v in values], "o-")
        axis.set_xlabel(names[name])
        axis.set_xticks(values, [str(v) for v in values], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("CPU seconds, all depths")
    picture.suptitle(
        "Jacobians of one prompt at every depth (one thread; GPT-2 shape, 64 + 7 tokens, 4 blocks, d=384)"
    )
    picture.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
