"""The neuron pass beside summary.py and correlations_fast.py of wesg52/universal-neurons.

    python bench/peers/universal_neurons.py CHECKOUT [summary] [correlations] [--tokens 20480] [--rounds 3]

CHECKOUT is a clone of the repository. Its scripts import `transformer-lens<4`, datasets, pandas, matplotlib,
seaborn and plotly, which must be installed beside interpcore. Random models of GPT-2 small's shape (for
correlations two of three blocks: 9,216 neurons each), one thread, CPU seconds of each script's main work with
what it writes, ways in turn; what both compute is compared first, on a few tokens.
"""

import argparse
import dataclasses
import functools
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import with_transformers
from torch import Tensor

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.correlation.correlate import correlate
from interpcore.neurons.correlation.setup import Settings
from interpcore.neurons.correlation.sketch import correlate_by_sketch
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.summarize import summarize
from interpcore.ops.backend import isa
from interpcore.ops.product_routes import cpu_name

WORK_AROUNDS = (
    "models are built from local weights by TransformerLens' own conversion, since no hub is asked",
    "tokens are a dictionary instead of a datasets folder",
    "correlations_fast.py reads its arguments from a global, which is set",
    "and a tokenizer's pad and newline, which are given as ids that do not occur, so that all tokens count",
)
CONTEXT, BATCH, BINS, TOP, TRUNCATED = 128, 32, 256, 50, 100
PUBLISHED = Statistics(
    thresholds=(), histogram=False, position=False, published=True, top=TOP, by_token=("token",), largest=True
)
HALF = dataclasses.replace(PUBLISHED, precision="bfloat16")
Ways = dict[str, Callable[[], object]]
Row = tuple[str, str, str, str]


def main() -> None:
    """Print the table."""
    asked = _arguments()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    peer = Peer(asked.checkout)
    print(f"{cpu_name()}, {isa()}, 1 thread, float32; torch {torch.__version__}; {peer.version}")
    print("".join(f"worked around: {said}\n" for said in WORK_AROUNDS))
    print("| what | published script | interpcore | as fast |\n|---|---|---|---|")
    for what in asked.what or ("summary", "correlations"):
        rows = {"summary": summaries, "correlations": correlations}[what]
        for each in rows(peer, asked):
            print("| " + " | ".join(each) + " |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="a clone of wesg52/universal-neurons")
    parser.add_argument("what", nargs="*", choices=["summary", "correlations", []], help="default: both")
    parser.add_argument("--tokens", type=int, default=20480, help="of the timed summary")
    parser.add_argument("--corpora", default="4096,30720", help="tokens of the timed correlations")
    parser.add_argument("--vocabulary", type=int, default=5000, help="token ids of the models")
    parser.add_argument(
        "--rotated", action="store_true", help="with the rotated baseline too, and by a sketch"
    )
    parser.add_argument("--buckets", type=int, default=4096, help="of the sketch")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


class Peer:
    """The scripts of a clone, imported.

    Args:
        checkout: the clone.
    """

    def __init__(self, checkout: Path) -> None:
        asked = ("git", "-C", str(checkout), "rev-parse", "--short", "HEAD")
        commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        self.version = f"universal-neurons {commit} on TransformerLens {version('transformer-lens')}"
        sys.path.insert(0, str(checkout.resolve()))
        self.summary: Any = importlib.import_module("summary")
        self.fast: Any = importlib.import_module("correlations_fast")
        self.flat: Any = importlib.import_module("analysis.correlations")

    def model(self, hf: Any) -> Any:
        """A HookedTransformer with the weights of a transformers GPT-2, folded as the scripts have it."""
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

        shape = hf.config
        config = HookedTransformerConfig(
            n_layers=shape.n_layer,
            d_model=shape.n_embd,
            n_ctx=shape.n_positions,
            d_head=shape.n_embd // shape.n_head,
            n_heads=shape.n_head,
            d_vocab=shape.vocab_size,
            act_fn="gelu_new",
            normalization_type="LN",
            device="cpu",
        )
        model = HookedTransformer(config)
        model.load_and_process_state_dict(convert_gpt2_weights(hf, config))
        model.tokenizer = SimpleNamespace(pad_token_id=-1, bos_token_id=-1, padding_side="right")
        model.to_single_token = lambda text: -2
        return model.eval()

    def summarize(self, model: Any, tokens: Tensor, folder: str) -> Path:
        """What summary.py does with a loaded model on tokens [sequence, position].

        Returns: where its files are.
        """
        named = {"output_dir": folder, "model": "model", "token_dataset": "tokens"}
        sizes = {"n_bins": BINS, "top_k_dataset_examples": TOP, "top_vocab_k_truncate": TRUNCATED}
        asked = SimpleNamespace(batch_size=BATCH, **named, **sizes)
        self.summary.summarize_activations(asked, model, {"tokens": tokens}, torch.device("cpu"))
        return Path(folder, "model", "activations", "tokens")

    def correlate(self, models: list[Any], tokens: Tensor, baseline: str) -> tuple[Any, ...]:
        """What correlations_fast.py does with loaded models on tokens [sequence, position].

        Returns: its summaries both ways.
        """
        devices = {f"{name}_device": "cpu" for name in ("model_1", "model_2", "correlation")}
        self.fast.args = SimpleNamespace(
            batch_size=BATCH, baseline=baseline, similarity_type="pearson", **devices
        )
        found = self.fast.run_correlation_experiment(self.fast.args, *models, {"tokens": tokens})
        found = self.flat.flatten_layers(found).to(torch.float32)
        return tuple(map(self.flat.summarize_correlation_matrix, (found, found.T)))


def corpus(n: int, vocabulary: int) -> Tensor:
    """Sequences of tokens with Zipf's frequencies [sequence, position]."""
    frequency = 1 / torch.arange(1, vocabulary + 1)
    make = torch.Generator().manual_seed(0)
    return torch.multinomial(frequency, n // CONTEXT * CONTEXT, True, generator=make).view(-1, CONTEXT)


def in_turn(ways: Ways, rounds: int, check: Callable[[dict[str, Any]], None]) -> dict[str, list[float]]:
    """CPU seconds of each way, by round; the first round's results are compared."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        found = {}
        for name, run in ways.items():
            begun = time.process_time()
            found[name] = run()
            spent[name].append(time.process_time() - begun)
            print(f"{name}: {spent[name][-1]:.1f} s", file=sys.stderr, flush=True)
        if not number:
            check(found)
    return spent


def row(what: str, spent: dict[str, list[float]], theirs: Sequence[str], ours: str) -> Row:
    """Median seconds of theirs together and of ours, and the median ratio with its range."""
    whole = [sum(each) for each in zip(*(spent[name] for name in theirs), strict=True)]
    ratios = [a / b for a, b in zip(whole, spent[ours], strict=True)]
    shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x"
    seconds = [f"{statistics.median(times):.3g} s" for times in (whole, spent[ours])]
    return f"{what}: {ours}", seconds[0], seconds[1], shown


def summaries(peer: Peer, asked: argparse.Namespace) -> Iterator[Row]:
    """Histogram, largest value and sum by token, 50 top examples of every neuron."""
    hf = with_transformers.model(vocab_size=asked.vocabulary)
    theirs, ours = peer.model(hf), _ours(hf)
    tokens = corpus(asked.tokens, asked.vocabulary)
    shards = TokenShards.of_arrays(tokens, asked.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        ways: Ways = {
            "published": lambda: peer.summarize(theirs, tokens, tempfile.mkdtemp(dir=folder)),
            "with exact moments": lambda: summarize(
                ours, shards, tempfile.mkdtemp(dir=folder), PUBLISHED, progress=False
            ),
            "and forwards in bfloat16": lambda: summarize(
                ours, shards, tempfile.mkdtemp(dir=folder), HALF, progress=False
            ),
        }
        spent = in_turn(ways, asked.rounds, _check_summary)
    what = f"summary, {tokens.numel():,} tokens, vocabulary {asked.vocabulary}"
    for name in list(ways)[1:]:
        yield row(what, spent, ["published"], name)


def _check_summary(found: dict[str, Any]) -> None:
    """Both within what half precision does to theirs."""
    theirs, ours = found["published"], found["with exact moments"]
    named = {path.stem.removeprefix("neuron_"): torch.load(path) for path in theirs.glob("*.pt")}
    near = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)
    for depth in range(ours.n_layers):
        counts = ours.histogram(depth, published=True).counts
        moved = (counts - named["bin_counts"][depth]).abs().sum() / 2 / counts.sum()
        assert torch.equal(counts.sum(1), named["bin_counts"][depth].sum(1)) and moved < 2e-3, moved
        top = ours.examples(depth).value.T.clamp(min=0)
        near(named["max_activating_value"][depth].float(), top)
        # Theirs begin at 0, which ids that never came keep, and divide by counts a thousandth too large.
        by_token = ours.groups("token", depth)
        shrunk = by_token.mean * (by_token.count / (by_token.count + 1e-3))[:, None]
        for name, mine in (("vocab_max", by_token.largest.double()), ("vocab_mean", shrunk)):
            most = mine.clamp(min=0).topk(TRUNCATED, 0).values.T
            near(named[name][depth].double(), most)


def correlations(peer: Peer, asked: argparse.Namespace) -> Iterator[Row]:
    """Correlations of every neuron of one model with every one of another."""
    hf = [with_transformers.model(seed=seed, vocab_size=asked.vocabulary, n_layer=3) for seed in (0, 1)]
    theirs, ours = [peer.model(each) for each in hf], [_ours(each) for each in hf]
    for n in map(int, asked.corpora.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            yield from correlated(peer, theirs, ours, corpus(n, asked.vocabulary), folder, asked)


def correlated(
    peer: Peer, theirs: list[Any], ours: list[Model], tokens: Tensor, folder: str, asked: argparse.Namespace
) -> Iterator[Row]:
    """Rows of one corpus; the rotated baseline takes the script another run."""
    shards, names = TokenShards.of_arrays(tokens, asked.vocabulary), ["one", "other"]
    fresh = functools.partial(tempfile.mkdtemp, dir=folder)
    plain, rotated = Settings(rotation=None), Settings(rotation="published")

    def pairs(settings: Settings, **changed: str) -> Callable[[], object]:
        taken = dataclasses.replace(settings, **changed)  # type: ignore[arg-type]
        return lambda: correlate(ours, shards, taken, names=names, folder=fresh())

    ways: Ways = {
        "published": lambda: peer.correlate(theirs, tokens, "none"),
        "all pairs": pairs(plain),
        "all pairs, bfloat16": pairs(plain, precision="bfloat16"),
    }
    if asked.rotated:
        ways |= {
            "published, rotated": lambda: peer.correlate(theirs, tokens, "rotation"),
            "and rotated": pairs(rotated),
            "and rotated, bfloat16": pairs(rotated, precision="bfloat16"),
        }
        if asked.buckets < tokens.numel():
            ways[f"and rotated, by a sketch of {asked.buckets:,}"] = lambda: correlate_by_sketch(
                ours, shards, rotated, buckets=asked.buckets, names=names, folder=fresh()
            )
    spent = in_turn(ways, asked.rounds, _check_correlations)
    what = f"correlations 9216 x 9216, {tokens.numel():,} tokens"
    for name in ways:
        if not name.startswith("published"):
            runs = ["published"] + ["published, rotated"] * name.startswith("and rotated")
            yield row(what, spent, runs, name)


def _check_correlations(found: dict[str, Any]) -> None:
    """Both within what theirs round to half precision."""
    kept, back = found["published"]
    for pair, theirs in (((0, 1), kept), ((1, 0), back)):
        ours = found["all pairs"].partners[pair]
        for name, mine in (
            ("max_tail_corr", ours.top),
            ("min_tail_corr", ours.bottom),
            ("corr_mean", ours.mean),
        ):
            torch.testing.assert_close(theirs[name].float(), mine.float(), rtol=0, atol=5e-3)


def _ours(hf: Any) -> Model:
    loaded = interpcore.load(hf)
    assert isinstance(loaded, Model)
    return loaded


if __name__ == "__main__":
    main()
