"""What a transformers model's modules mean, found by running it: names propose, two short forwards decide.

A site is kept where its module runs once in every block, in the blocks' order, its value is
[batch, position, d_model], what attention and MLP add is the change of the stream (also where both are
edited), what they read is a norm's output and the stream before it, the neurons are what the projection reads
that writes the MLP's output and come of other projections by one function, and an edit reaches the logits. A
model that is not causal row by row is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn

from interpcore.errors import Refused
from interpcore.model.hooks import FOR, TIMES, Watch, watch, watch_for, watch_times
from interpcore.model.probe_branches import check_neurons, read_inputs, read_neurons
from interpcore.model.probe_run import (
    AFTER,
    APART,
    EXACT,
    INSIDE,
    PARTS,
    READERS,
    Found,
    Place,
    Run,
    Watched,
    children,
    is_norm,
)
from interpcore.model.sites import SITES

N_TOKENS = 8
N_FREE = 2  # tokens at the end that differ between the two forwards, and where the second is edited
# Largest |logit difference| over largest |logit| that rounding makes between two batches, by dtype.
ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-1, torch.bfloat16: 3e-1}
OUTSIDE = ("embed", "unembedding", "logits")


def size_of(config: Any, name: str) -> int:
    """A size of a config; 0 where it has none, or several, one for each block."""
    try:
        size = getattr(config, name, None)
    except RuntimeError:  # transformers' answer where the blocks differ
        return 0
    return size if isinstance(size, int) and size > 0 else 0


def numbers(config: Any) -> list[float]:
    """The config's factors, some of which stand over the square root of the number of blocks (MiniCPM): what
    is positive and no count."""
    named = [x for x in config.to_dict().values() if isinstance(x, float) and x > 0]
    return sorted({*named, *(x / config.num_hidden_layers**0.5 for x in named)} - {1.0})


@contextmanager
def frozen(hf: nn.Module) -> Iterator[None]:
    """Weights that ask for no gradient: a forward then keeps a graph only of what its edits bring."""
    asking = [p for p in hf.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@torch.inference_mode(False)
def find_sites(hf: Any, lists: Sequence[nn.ModuleList], d_model: int, name: str) -> Found:
    """Probe a model.

    Args:
        hf: the transformers model.
        lists: its lists of modules that may be the blocks.
        d_model: width of the stream.
        name: of the model, for messages.
    Raises: ValueError for a model that cannot run on token ids, or that is not causal row by row.
    """
    n = min(N_TOKENS, size_of(hf.config.get_text_config(), "max_position_embeddings") or N_TOKENS)
    vocabulary = hf.get_output_embeddings().weight.shape[0]
    whole = torch.randint(1, vocabulary, (2, n), generator=torch.Generator().manual_seed(0))
    padded = whole.clone()
    padded[0, n - N_FREE :] = 0
    paths = {id(module): path for path, module in hf.named_modules()}
    prefixes = {paths[id(blocks)]: blocks for blocks in lists}
    run = _run(hf, _candidates(hf, prefixes, paths), padded, name)
    fitting = (p for p, blocks in prefixes.items() if run.in_order(p, range(len(blocks) + 1)))
    prefix = next(fitting, next(iter(prefixes)))
    found = _read(run, prefix, prefixes[prefix], (2, n, d_model), hf.config.get_text_config())
    _name_rest(run, found, hf, paths)
    inner = {site: at for site, at in found.boundaries.items() if site != "logits"}
    edited = _run(hf, list(site_places(hf, inner, len(found.layers))), whole[:1], name, edit=True)
    _check_edits(edited, found, _causal_gradients(edited, run.logits[:1], n - N_FREE, name))
    return found


def _candidates(hf: Any, prefixes: dict[str, nn.ModuleList], paths: dict[int, str]) -> list[Watched]:
    """Boundaries that may be sites: of each list of blocks by its path, of their children by theirs."""
    inside = tuple(f"{prefix}." for prefix in prefixes)
    watched: list[Watched] = [
        (("embed", None), partial(watch, hf.get_input_embeddings(), "output")),
        (("unembedding", None), partial(watch, hf.get_output_embeddings(), "input")),
        (("logits", None), partial(watch, hf.get_output_embeddings(), "output")),
    ]
    watched += [
        ((path, None), partial(watch, module, "output"))
        for path, module in hf.named_modules()
        if is_norm(module) and not path.startswith(inside)
    ]

    def add(key: str, modules: Sequence[nn.Module] | nn.ModuleList, *sides: str) -> None:
        for side in sides:
            mark = "<" if side == "input" else ""
            watched.extend(((f"{key}{mark}", d), partial(watch, m, side)) for d, m in enumerate(modules))

    for prefix, blocks in prefixes.items():
        watched += [((prefix, d), partial(watch, block, "input")) for d, block in enumerate(blocks)]
        watched.append(((prefix, len(blocks)), partial(watch, blocks[-1], "output")))
        for child in children(blocks):
            parts = [getattr(block, child) for block in blocks]
            reads = is_norm(parts[0]) or any(child in names for names in READERS.values())
            add(f"{prefix}.{child}", parts, "output", *(["input"] if reads else []))
            for inner in children(parts) if child in PARTS["mlp_out"] else ():
                add(f"{prefix}.{child}.{inner}", [getattr(part, inner) for part in parts], "input", "output")
    return watched


def _run(hf: Any, watched: Sequence[Watched], ids: Tensor, name: str, edit: bool = False) -> Run:
    """A forward on ids [batch, position]; one that edits adds noise of each value's own size to its last
    tokens.

    Raises: ValueError where transformers cannot run it.
    """
    run = Run()
    generator = torch.Generator().manual_seed(1)

    def seeing(place: Place) -> Callable[[Tensor], Tensor]:
        def see(value: Tensor) -> Tensor:
            run.order.append(place)
            run.came[place] = value.detach().to("cpu", copy=True)
            if edit:
                noise = torch.randn(value.shape, generator=generator).to(value)
                noise[:, : value.shape[1] - N_FREE] = 0
                run.leaves[place] = (noise * value.detach().float().std().to(value)).requires_grad_()
                value = value + run.leaves[place]
            run.seen[place] = value.detach().to("cpu", copy=True)
            return value

        return see

    with ExitStack() as stack, torch.set_grad_enabled(edit), frozen(hf):
        for place, watching in watched:
            stack.callback(watching(seeing(place)))
        try:
            run.logits = hf(input_ids=ids.to(hf.get_input_embeddings().weight.device), use_cache=False).logits
        except Exception as error:  # whatever a config that does not fit the weights brings about
            raise Refused(f"transformers cannot run {name} on token ids alone: {error}.") from error
    return run


def _read(run: Run, prefix: str, blocks: nn.ModuleList, shape: tuple[int, ...], config: Any) -> Found:
    """The stream, and the children of the blocks that add to it; reasons for what is not there."""
    found = Found(blocks)
    n, inside = len(blocks), children(blocks)

    def fits(key: str, depths: Sequence[int | None]) -> bool:
        return run.in_order(key, depths) and all(run.seen[key, d].shape == shape for d in depths)

    if fits("embed", [None]):
        found.boundaries["embed"] = ("output", "")
    else:
        found.absent["embed"] = f"the token embedding does not give one {list(shape[1:])} value a forward."
    if not fits(prefix, range(n + 1)):
        found.absent["resid"] = (
            "no stream [batch, position, d_model] runs through its blocks, each called once."
        )
        found.drop(INSIDE, APART)
        return found
    found.boundaries["resid"] = ("input", f"{prefix}.{{d}}")
    for d in range(n + 1):
        run.seen["resid", d] = run.came["resid", d] = run.seen[prefix, d]
    norms = [c for c in inside if is_norm(getattr(blocks[0], c)) and fits(f"{prefix}.{c}", range(n))]
    norms.sort(key=lambda c: run.order.index((f"{prefix}.{c}", 0)))
    named = {
        site: [*(c for c in names if c in inside), *(c for c in norms if any(w in c for w in AFTER[site]))]
        for site, names in PARTS.items()
    }
    pairs = [*product(*named.values()), *combinations(norms, 2)]  # which comes first is attention's
    factors = [1.0, *numbers(config)]
    for attention, mlp in pairs:
        one, other = f"{prefix}.{attention}", f"{prefix}.{mlp}"
        if not fits(one, range(n)) or not fits(other, range(n)):
            continue
        factor = next((f for f in factors if run.add_up(one, other, n, f)), None)
        if factor is not None:
            for site, child in zip(PARTS, (attention, mlp), strict=True):
                side = "output" if factor == 1 else f"{TIMES}{factor}"
                found.keep(site, side, f"{prefix}.{{d}}.{child}")
            read_inputs(run, prefix, found, fits, factor)
            read_neurons(run, prefix, found)
            return found
    found.drop(INSIDE, APART)
    return found


def _name_rest(run: Run, found: Found, hf: Any, paths: dict[int, str]) -> None:
    """Paths of what is outside the blocks: embedding, final norm, logits."""
    if "embed" in found.boundaries:
        found.boundaries["embed"] = ("output", paths[id(hf.get_input_embeddings())])
    read = run.seen.get(("unembedding", None), torch.empty(0))
    norms = [
        key
        for key, depth in run.order
        if depth is None
        and key not in OUTSIDE
        and run.in_order(key, [None])
        and torch.equal(run.seen[key, None], read)
    ]
    if norms:
        found.boundaries["final_norm"] = ("output", norms[-1])
    else:
        found.absent["final_norm"] = "what its unembedding reads is no norm's output."
    given = run.seen.get(("logits", None), torch.empty(0))
    if torch.equal(given, run.logits.cpu()):
        found.boundaries["logits"] = ("output", paths[id(hf.get_output_embeddings())])


def site_places(hf: Any, boundaries: Mapping[str, tuple[str, str]], n_blocks: int) -> Iterator[Watched]:
    """Where sites are watched at each depth: what comes before a norm before what comes behind it."""

    def watching(side: str, path: str) -> Watch:
        module = hf.get_submodule(path)
        if side.startswith(TIMES):
            return partial(watch_times, module, float(side.removeprefix(TIMES)))
        if not side.startswith(FOR):
            return partial(watch, module, side)
        reader = f"{path.rsplit('.', 1)[0]}.{side.removeprefix(FOR)}"
        return partial(watch_for, hf.get_submodule(reader), module)

    for site in (site for site in SITES if site in boundaries):
        side, path = boundaries[site]
        if SITES[site].depths == "none":
            yield (site, None), watching(side, path)
            continue
        for d in range(n_blocks):
            yield (site, d), watching(side, path.format(d=d))
        if SITES[site].depths == "calls+1":
            yield (site, n_blocks), watching("output", path.format(d=n_blocks - 1))


def _causal_gradients(edited: Run, before: Tensor, n: int, name: str) -> dict[Place, Tensor]:
    """Gradients of the first n tokens' logits, which nothing that was edited or changed behind them may
    reach.

    Args:
        before: their logits in a padded row beside another [1, position, vocabulary].
    Raises: ValueError where something does.
    """
    here = edited.logits[:, :n].detach()
    if not bool(here.isfinite().all()):
        raise Refused(f"The logits of {name} are not finite; its weights are damaged.")
    gap = float((here - before[:, :n]).abs().max() / here.abs().max().clamp(min=1e-30))
    weights = torch.randn(here.shape, generator=torch.Generator().manual_seed(2)).to(here)
    places = list(edited.leaves)
    with torch.enable_grad():
        total = (edited.logits[:, :n] * weights).sum()
    leaves = list(edited.leaves.values())
    found = torch.autograd.grad(total, leaves, allow_unused=True) if leaves else ()
    gradients = {p: torch.zeros(1, n) if g is None else g for p, g in zip(places, found, strict=True)}
    leak = any(bool(g[:, n:].abs().sum() > EXACT * g.abs().sum()) for g in gradients.values())
    if leak or gap > ROUNDING[here.dtype]:
        raise Refused(
            f"{name} is not causal: the logits of a prompt's tokens change with what follows them or with "
            f"other rows (by {gap:.1e} of the largest one), and only causal decoders can be read."
        )
    return gradients


def _check_edits(edited: Run, found: Found, gradients: dict[Place, Tensor]) -> None:
    """Drop the sites whose edits do not do what they say."""
    n = len(found.layers)
    if "attn_out" in found.boundaries and not edited.add_up("attn_out", "mlp_out", n):
        found.drop(INSIDE, APART)
        found.functions = ()
    check_neurons(edited, found)
    for (site, _), gradient in gradients.items():
        if not bool(gradient[:, :-N_FREE].any()):
            found.drop([site], "an edit there does not reach the logits.")
