"""The graph of transcoders' latents on one prompt: who makes whom active, and the logits.

Every MLP's output is written as latents times their decoder vectors, and an error. With attention patterns
and the norms' scales as they are, what each of these, and each token, adds to a latent before its activation
or to a logit is then linear, and the sum of all is exact up to constants (biases). A latent's row takes what
reaches its layer's MLP without passing through another MLP (Ameisen et al. 2025, circuit-tracer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model import Model, Tap
from interpcore.model.dictionary import Dictionary
from interpcore.model.linearize import Rules, linearize
from interpcore.model.linearize.block import LinearBlock
from interpcore.model.linearize.norm import LinearNorm
from interpcore.model.linearize.walk import Linearization
from interpcore.model.token_text import token_texts
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd

READS = ("mlp_normed", "mlp_in", "resid_mid")
LATENT, ERROR, TOKEN, LOGIT = "latent", "error", "token", "logit"


@dataclass(frozen=True)
class Node:
    """A node: kind is "latent", "error", "token" or "logit".

    Args:
        kind: see above.
        layer: block call; -1 of tokens, the number of calls of logits.
        position: of the token.
        index: latent, or token id; -1 of errors.
        value: a latent's activation, a logit's probability, else NaN.
        text: of the token.
    """

    kind: str
    layer: int
    position: int
    index: int
    value: float = float("nan")
    text: str = ""

    @property
    def name(self) -> str:
        """Short, and of this node alone."""
        at = f"@{self.position}"
        if self.kind in (TOKEN, LOGIT):
            return f"{self.kind} {self.index}{at}"
        return f"{self.layer}.{'error' if self.kind == ERROR else self.index}{at}"


@dataclass(frozen=True, eq=False)
class LatentGraph(AsTable):
    """Nodes in circuit-tracer's order (latents, errors, tokens, logits) and what each adds to each.

    Args:
        model: name.
        tokens: texts of the prompt's tokens.
        nodes: in order.
        weights: what node j adds to node i [i, j] float32; rows of errors and tokens are 0.
        left_out: active latents that have no row and no column.
    """

    model: str
    tokens: tuple[str, ...]
    nodes: tuple[Node, ...]
    weights: Tensor
    left_out: int = 0

    def __repr__(self) -> str:
        kinds = [node.kind for node in self.nodes]
        said = ", ".join(f"{kinds.count(kind)} {kind}s" for kind in (LATENT, ERROR, TOKEN, LOGIT))
        return f"LatentGraph({self.model}: {said})"

    def to_pandas(self) -> pd.DataFrame:
        """What adds to what: source, target, weight; the largest |weight| first."""
        import pandas as pd

        at, by = self.weights.nonzero().unbind(1)
        names = [node.name for node in self.nodes]
        frame = pd.DataFrame(
            {
                "source": [names[j] for j in by.tolist()],
                "target": [names[i] for i in at.tolist()],
                "weight": self.weights[at, by].numpy(),
            }
        )
        return frame.sort_values("weight", key=abs, ascending=False, kind="stable", ignore_index=True)

    @property
    def influence(self) -> Tensor:
        """Each node's share in the logits over all paths [node] float64: the logits' probabilities through
        |weights| whose rows sum to 1."""
        return influence(self.weights, self._wanted)

    @property
    def _wanted(self) -> Tensor:
        return torch.tensor([n.value if n.kind == LOGIT else 0.0 for n in self.nodes], dtype=torch.float64)

    def pruned(self, nodes: float = 0.8, edges: float = 0.98) -> LatentGraph:
        """The nodes that hold a share of the influence, and the edges among them; tokens and logits stay.

        Args:
            nodes: share of the nodes' influence that is kept.
            edges: share of the edges' influence, of what is left.
        """
        fixed = torch.tensor([node.kind in (TOKEN, LOGIT) for node in self.nodes])
        latents = torch.tensor([node.kind == LATENT for node in self.nodes])
        keep = _largest(self.influence, nodes) | fixed
        left = self.weights.where(keep[:, None] & keep, 0)
        reach = influence(left, self._wanted) + self._wanted
        strong = _largest((_rows(left) * reach[:, None]).flatten(), edges).view_as(left) & (left != 0)
        before = -1
        while before != (before := int(keep.sum())):
            strong &= keep[:, None] & keep
            keep &= fixed | strong.any(0)
            keep &= ~latents | strong.any(1)
        strong &= keep[:, None] & keep
        chosen = keep.nonzero()[:, 0]
        weights = self.weights.where(strong, 0)[chosen][:, chosen]
        kept = tuple(self.nodes[i] for i in chosen.tolist())
        return LatentGraph(self.model, self.tokens, kept, weights, self.left_out)


def influence(weights: Tensor, wanted: Tensor) -> Tensor:
    """wanted (A + A^2 + ...) [node] float64, of A = |weights| [node, node] with rows that sum to 1.

    Raises: Refused for a graph with a circle, as a file may hold.
    """
    a, total = _rows(weights), torch.zeros_like(wanted)
    step = wanted @ a
    for _ in range(len(a)):  # no path is longer
        if not bool(step.any()):
            return total
        total += step
        step = step @ a
    raise Refused("The graph has a circle, so no node's influence is defined.")


def _rows(weights: Tensor) -> Tensor:
    size = weights.double().abs()
    return size / size.sum(1, keepdim=True).clamp(min=1e-10)


def _largest(values: Tensor, share: float) -> Tensor:
    """Which values are needed, the largest first, for a share of their sum."""
    ordered = values.sort(descending=True).values
    so_far = ordered.cumsum(0) / ordered.sum().clamp(min=1e-30)
    at = min(int(torch.searchsorted(so_far, share)), len(ordered) - 1)
    return values >= ordered[at]


@torch.no_grad()
def attribute_latents(
    model: Model,
    tokens: Sequence[int],
    transcoders: Sequence[Dictionary],
    *,
    logits: int = 10,
    probability: float = 0.95,
    most: int = 4096,
    batch: int = 256,
) -> LatentGraph:
    """The graph of one prompt.

    Args:
        model: the decoder.
        tokens: ids of the prompt.
        transcoders: of the MLPs: each reads what one reads and writes mlp_out of the same call. The output
            of an MLP without one is all error.
        logits: the most likely next tokens, so many at most.
        probability: fewer, where so much of the probability is theirs.
        most: latents with rows, taken by their influence on the logits as far as it is known.
        batch: rows at once.
    Raises: Refused for what is no transcoder of an MLP, two of one call, or a model that is not linearised.
    """
    by_layer = _by_layer(model, transcoders)
    depths = range(model.plan.n_calls)
    outs = {d: Tap("mlp_out", d) for d in depths}
    reads = {d: each.tap() for d, each in by_layer.items()}
    stream = Tap("resid", 0)
    frozen = Rules(norm="frozen", scores="frozen", dropped=frozenset(("mlp", d) for d in depths))
    ids = torch.tensor([list(tokens)], device=model.device)
    linear = linearize(model, ids, taps=[*outs.values(), *reads.values(), stream], rules=frozen)
    walk = _Walk(linear, by_layer, {d: linear.taps[tap][0] for d, tap in outs.items()})
    walk.find({d: linear.taps[tap][0] for d, tap in reads.items()}, linear.taps[stream][0])
    chosen, shares = _likely(model, linear, logits, probability)
    rows = {len(walk.sources) + i: row for i, row in enumerate(walk.logit_rows(chosen))}
    n = len(walk.sources)
    wanted = torch.zeros(n + len(chosen), dtype=torch.float64)
    wanted[n:] = shares.double()
    whole = torch.zeros(n + len(chosen), n + len(chosen))
    for at, row in rows.items():
        whole[at, :n] = row
    done = torch.zeros(walk.n_latents, dtype=torch.bool)
    while int(done.sum()) < min(most, walk.n_latents):
        order = influence(whole, wanted)[: walk.n_latents].masked_fill(done, -1).argsort(descending=True)
        new = order[: min(batch, most - int(done.sum()), int((~done).sum()))]
        whole[new, :n] = walk.latent_rows(new.tolist())
        done[new] = True
    kept = torch.cat([done.nonzero()[:, 0], torch.arange(walk.n_latents, n + len(chosen))])
    texts = (
        [str(i) for i in range(model.spec.vocab_size)]
        if model.tokenizer is None
        else token_texts(model.tokenizer, model.spec.vocab_size)
    )
    ends = [
        Node(LOGIT, len(depths), len(tokens) - 1, i, float(p), texts[i])
        for i, p in zip(chosen, shares, strict=True)
    ]
    nodes = [*walk.nodes(list(tokens), texts), *ends]
    name = model.spec.short_name
    weights = whole[kept][:, kept]
    return LatentGraph(
        name,
        tuple(texts[i] for i in tokens),
        tuple(nodes[i] for i in kept.tolist()),
        weights,
        walk.n_latents - int(done.sum()),
    )


def _by_layer(model: Model, transcoders: Sequence[Dictionary]) -> dict[int, Dictionary]:
    found: dict[int, Dictionary] = {}
    for each in transcoders:
        (read, depth), (written, to) = each.reads, each.writes
        if read not in READS or written != "mlp_out" or depth != to or depth is None:
            raise Refused(
                f"{each.name} reads {read}.{depth} and writes {written}.{to}; a transcoder reads one of "
                f"{', '.join(READS)} and writes mlp_out of the same block call."
            )
        if depth in found:
            raise Refused(f"{each.name} and {found[depth].name} are of the same MLP; give one.")
        found[depth] = each
    if not found:
        raise Refused("A graph of latents needs a transcoder.")
    return found


def _likely(model: Model, linear: Linearization, count: int, probability: float) -> tuple[list[int], Tensor]:
    """The most likely next tokens, and their probabilities."""
    last = linear.output[:, -1]
    p = model.capped(model.unembedding(model.final_norm(last)))[0].float().softmax(-1)
    top = p.topk(min(count, len(p)))
    enough = int((top.values.cumsum(0) < probability).sum()) + 1
    return top.indices[:enough].tolist(), top.values[:enough].cpu()


@dataclass(eq=False)
class _Walk(ShortRepr):
    """Sources and rows of one prompt.

    Args:
        linear: the linearised forward, MLPs dropped.
        transcoders: by block call.
        outs: what the MLPs write [position, d_model], by block call.
    """

    linear: Linearization
    transcoders: dict[int, Dictionary]
    outs: dict[int, Tensor]

    def find(self, reads: dict[int, Tensor], stream: Tensor) -> None:
        """The active latents, the errors and the tokens: `sources` [source, d_model] in the nodes' order,
        with their layer (-1: the stream) and position; and the latents' indices and activations."""
        parts: dict[str, list[Tensor]] = {name: [] for name in ("vector", "layer", "place", "index", "value")}
        errors = dict(self.outs)
        for layer, each in sorted(self.transcoders.items()):
            latents = each.latents(reads[layer])
            place, index = latents.nonzero().unbind(1)
            value = latents[place, index]
            parts["vector"].append(value[:, None] * each.decoder[index])
            parts["layer"].append(torch.full_like(place, layer))
            for name, x in (("place", place), ("index", index), ("value", value)):
                parts[name].append(x)
            errors[layer] = self.outs[layer] - latents @ each.decoder
        self.index, self.value = torch.cat(parts["index"]), torch.cat(parts["value"])
        self.n_latents, width = len(self.index), len(stream)
        places = torch.arange(width, device=stream.device)
        layers = [*parts["layer"], *(torch.full_like(places, d) for d in sorted(errors)), places * 0 - 1]
        self.layer = torch.cat(layers)
        self.place = torch.cat([*parts["place"], *(places for _ in errors), places])
        self.sources = torch.cat([*parts["vector"], *(errors[d] for d in sorted(errors)), stream])

    def nodes(self, tokens: list[int], texts: Sequence[str]) -> list[Node]:
        """The sources as nodes."""
        layers, places = self.layer.tolist(), self.place.tolist()
        indices, values = self.index.tolist(), self.value.tolist()
        found = []
        for i, (layer, place) in enumerate(zip(layers, places, strict=True)):
            if i < self.n_latents:
                found.append(Node(LATENT, layer, place, indices[i], values[i]))
            elif layer >= 0:
                found.append(Node(ERROR, layer, place, -1))
            else:
                found.append(Node(TOKEN, -1, place, tokens[place], text=texts[tokens[place]]))
        return found

    def logit_rows(self, ids: list[int]) -> Tensor:
        """What every source adds to logits, minus the mean logit [logit, source]."""
        model, last = self.linear.model, self.linear.output[:, -1:]
        weight = model.unembedding.weight
        columns = (weight[:, ids] - weight.mean(1, keepdim=True)).mT
        g = columns.new_zeros(1, len(ids), *self.linear.output.shape[1:])
        g[0, :, -1] = LinearNorm.at(model.final_norm, last, True).vjp(columns[None, :, None])[0, :, 0]
        return self._collected(g, model.plan.n_calls)

    def latent_rows(self, chosen: list[int]) -> Tensor:
        """What every source adds to latents before their activation [latent, source]."""
        found = torch.zeros(len(chosen), len(self.sources))
        at = torch.tensor(chosen)
        for layer in sorted(set(self.layer[at].tolist())):
            mine = (self.layer[at] == layer).nonzero()[:, 0]
            each = self.transcoders[layer]
            encoders = each.encoder[:, self.index[at[mine]]].mT
            g = encoders.new_zeros(1, len(mine), *self.linear.output.shape[1:])
            g[0, torch.arange(len(mine)), self.place[at[mine]]] = encoders
            block = self._block(layer)
            found[mine] = self._collected(block.vjp_from_mlp(g, each.reads[0]), layer)
        return found

    def _block(self, layer: int) -> LinearBlock:
        blocks: list[Any] = [m for m in self.linear.modules if isinstance(m, LinearBlock)]
        found: LinearBlock = blocks[layer]
        return found

    def _collected(self, g: Tensor, depth: int) -> Tensor:
        """What every source adds [row, source], of cotangents of resid[depth] [1, row, position, d_model]."""
        found = torch.zeros(g.shape[1], len(self.sources))
        for step in self.linear.reverse(g, depth=depth, sites=("mlp_out",)):
            if step.depth is not None and "mlp_out" in step.sites:
                self._add(found, step.sites["mlp_out"][0], step.depth)
            if step.depth == 0:
                self._add(found, step.resid[0], -1)
        return found

    def _add(self, found: Tensor, g: Tensor, layer: int) -> None:
        """Products of cotangents [row, last positions, d_model] with the sources of a layer."""
        own = (self.layer == layer).nonzero()[:, 0]
        place = self.place[own] - (self.linear.n_positions - g.shape[1])
        own, place = own[place >= 0], place[place >= 0]
        for start in range(0, len(own), 1024):
            some, at = own[start : start + 1024], place[start : start + 1024]
            found[:, some] = torch.einsum("rsd,sd->rs", g[:, at], self.sources[some]).float().cpu()
