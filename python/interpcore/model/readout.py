"""From the last residual stream to what a prediction is worth: loss, entropy, rank, and the norm's scale.

The logits of x are s(x) (W^T (x - mean) * g) + c, with one number s per token: the final norm's reciprocal
scale. So the logits of x + delta w, for any number of deltas along one direction w, follow from two products,
W^T x and W^T w, without another product with the unembedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model.decoder import Model
from interpcore.ops import product

CACHED = 1 << 18
"""Logits that are measured at once: what a core's cache holds."""

ROUNDING = 1e-3
"""Difference of logits, relative to the largest, below which the order of two is not believed; in half
precision it is that of a few of its steps."""

MEASURES = ("loss", "entropy", "rank", "reciprocal_rank", "scale", "unigram_kl")
_FIELDS = ("loss", "entropy", "rank", "scale", "unigram_kl")


@dataclass(frozen=True, eq=False)
class TokenMeasures(ShortRepr):
    """What is measured at each token, each [..., n].

    Args:
        loss: -log p of the true next token, in nats; NaN where there is none.
        entropy: of the next-token distribution, in nats.
        rank: number of tokens with a larger logit than the true next token int64; -1 where there is none.
        scale: the final norm's scale, sqrt(variance + eps).
        unigram_kl: KL divergence of the next-token distribution from the corpus's own token frequencies, in
            nats; NaN where these are not known.
    """

    loss: Tensor
    entropy: Tensor
    rank: Tensor
    scale: Tensor
    unigram_kl: Tensor

    @property
    def reciprocal_rank(self) -> Tensor:
        """1 / (rank + 1); NaN where there is no next token."""
        return torch.where(self.rank < 0, torch.nan, 1 / (self.rank + 1.0))

    def view(self, *shape: int) -> TokenMeasures:
        """The same in another shape."""
        return TokenMeasures(*(getattr(self, name).reshape(shape) for name in _FIELDS))


@dataclass(frozen=True, eq=False)
class Readout(ShortRepr):
    """The final norm and unembedding of a model, taken apart.

    Args:
        model: the decoder.
        published: entropy as published, -sum p log(p + 1e-8).
        unigram: log-frequency of each token in a corpus [vocabulary], for `unigram_kl`; None for none.
        tile: logits of one product.
    """

    model: Model
    published: bool = False
    unigram: Tensor | None = None
    tile: int = 1 << 23

    def measure(self, resid: Tensor, target: Tensor, scale: Tensor | None = None) -> TokenMeasures:
        """Measures of final residuals.

        Args:
            resid: resid[D] [n, d_model].
            target: true next tokens, -1 for none [n].
            scale: the norm's scale to use instead of each token's own [n] (a frozen norm), or None.
        Returns: measures [n].
        """
        zero = resid.new_zeros((1, len(resid)))
        (found,) = self.along(resid, resid.new_zeros(resid.shape[1]), zero, target, (scale,))
        return found.view(len(resid))

    def along(
        self,
        resid: Tensor,
        w: Tensor,
        delta: Tensor,
        target: Tensor,
        scales: Sequence[Tensor | None] = (None,),
    ) -> list[TokenMeasures]:
        """Measures of resid + delta w for several deltas of each token.

        Args:
            resid: resid[D] [n, d_model].
            w: direction [d_model].
            delta: [versions, n].
            target: true next tokens, -1 for none [n].
            scales: None for the norm's scale of each version, or scales to use instead [n]; as many results.
        Returns: measures [versions, n], of each of the scales.
        """
        x, direction, delta = self._centre(_wide(resid)), self._centre(_wide(w)), _wide(delta)
        target = target.to(resid.device)
        own = self._scales(x, direction, delta)
        used = [own if scale is None else scale.to(own).expand(own.shape) for scale in scales]
        towards, constant = self._weigh(direction), self._constant()
        shape = (len(scales), *delta.shape)
        loss, entropy, kl = own.new_empty(shape), own.new_empty(shape), own.new_empty(shape)
        rank = torch.empty(shape, dtype=torch.int64, device=own.device)
        vocabulary = len(towards)
        step, small = (max(1, size // vocabulary) for size in (self.tile, CACHED))
        for at in range(0, len(x), step):
            base = self._weigh(x[at : at + step])
            for inner in range(0, len(base), small):
                part = base[inner : inner + small]
                rows = slice(at + inner, at + inner + len(part))
                for v in range(len(delta)):
                    moved = torch.addcmul(part, delta[v, rows, None], towards)
                    for number, scale in enumerate(used):
                        logits = self._cap(moved / scale[v, rows, None] + constant)
                        found = self._measure(logits, target[rows])
                        for into, value in zip((loss, entropy, rank, kl), found, strict=True):
                            into[number, v, rows] = value
        return [TokenMeasures(loss[i], entropy[i], rank[i], own, kl[i]) for i in range(len(scales))]

    def ranked(self, moved: Iterable[Tensor], bias: Tensor, betas: Sequence[float], k: int = 1) -> Tensor:
        """The highest tokens of beta * moved + bias for every beta, from two products with the unembedding.

        Args:
            moved: of each bias [n, d_model].
            bias: [bias, d_model]; one product serves all of them.
            betas: factors on `moved`.
            k: how many tokens.
        Returns: tokens, best first, before a soft-cap, which changes no order [bias, beta, n, k] int64.
        """
        biases = self._centre(_wide(bias))
        constant = self._constant()
        known = zip(moved, biases, self._weigh(biases), strict=True)
        return torch.stack([self._along_betas(*each, constant, betas, k) for each in known])

    def _along_betas(
        self, moved: Tensor, b: Tensor, offset: Tensor, constant: Tensor, betas: Sequence[float], k: int
    ) -> Tensor:
        """The highest tokens of beta * moved + b [beta, n, k], where b's own logits are the offset."""
        x = self._centre(_wide(moved))
        out = torch.empty(len(betas), len(x), k, dtype=torch.int64, device=x.device)
        shifted = bool(constant.any())
        step = max(1, self.tile // len(offset))
        for at in range(0, len(x), step):
            part = x[at : at + step]
            towards = self._weigh(part)
            for i, beta in enumerate(betas):
                logits = torch.add(offset, towards, alpha=beta)  # times the norm's scale, which is positive
                if shifted:
                    own = (part * beta + b).square().mean(-1) + self.model.final_norm.eps
                    logits.addcmul_(own.sqrt()[:, None], constant)
                out[i, at : at + step] = logits.argmax(-1, keepdim=True) if k == 1 else logits.topk(k).indices
        return out

    def top_is(self, resid: Tensor, goals: Tensor, aim: Tensor, likely: Tensor) -> Tensor:
        """Whether each residual's highest token is one of its goals.

        Where a likely token beats all of a residual's goals by more than rounding, the rest of the vocabulary
        changes nothing and is not asked.

        Args:
            resid: resid[D] [n, d_model].
            goals: sets of tokens [set, vocabulary] bool.
            aim: each residual's set [n] int64.
            likely: tokens that often win [token] int64.
        Returns: [n] bool, on the device of `goals`.
        """
        normed, last = self.model.final_norm(resid), self.model.unembedding
        few = torch.cat((goals.any(0).nonzero()[:, 0], likely.to(goals.device))).unique().to(resid.device)
        bias = None if last.bias is None else last.bias[few]
        logits = self.model.capped(product(normed, last.weight[:, few], bias=bias))
        rounding = max(ROUNDING, 4 * torch.finfo(logits.dtype).eps)
        good = goals[:, few.to(goals.device)][aim].to(logits.device)
        best, other = (logits.masked_fill(~one, -torch.inf).amax(-1) for one in (good, ~good))
        open_ = (best >= other - rounding * logits.abs().amax(-1)).nonzero()[:, 0]
        found = torch.zeros_like(aim, dtype=torch.bool)
        top = self.model.unembed(normed[open_]).argmax(-1).to(goals.device)
        open_ = open_.to(goals.device)
        found[open_] = goals[aim[open_], top]
        return found

    def scale(self, resid: Tensor) -> Tensor:
        """The final norm's scale of residuals [..., d_model]."""
        x = self._centre(_wide(resid))
        return (x.square().mean(-1) + self.model.final_norm.eps).sqrt()

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.model.final_norm.center else x

    def _scales(self, x: Tensor, w: Tensor, delta: Tensor) -> Tensor:
        """Norm scale of x + delta w [versions, n]."""
        d = x.shape[1]
        square = x.square().sum(1) + 2 * delta * (x * w).sum(1) + delta.square() * w.square().sum()
        return (square.clamp(min=0) / d + self.model.final_norm.eps).sqrt()

    def _weigh(self, x: Tensor) -> Tensor:
        """Logits [..., vocabulary] of centred residuals before they are divided by the scale."""
        norm = self.model.final_norm
        weighted = x if norm.weight is None else x * (_wide(norm.weight) + norm.offset)
        return product(weighted, self.model.unembedding.weight.to(x.dtype))

    def _constant(self) -> Tensor:
        """The logits' part that no residual changes [vocabulary]."""
        norm, last = self.model.final_norm, self.model.unembedding
        weight = _wide(last.weight)
        constant = weight.new_zeros(weight.shape[1])
        if norm.bias is not None:
            constant = constant + product(_wide(norm.bias), weight)
        return constant if last.bias is None else constant + _wide(last.bias)

    def _cap(self, logits: Tensor) -> Tensor:
        cap = self.model.spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _measure(self, logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Loss, entropy, rank and divergence from the unigram distribution of logits [n, vocabulary]."""
        present = target >= 0
        highest = logits.amax(-1, keepdim=True)
        weights = (logits - highest).exp_()
        weight = weights.sum(-1)
        total = highest[:, 0] + weight.log()
        exact = total - torch.linalg.vecdot(weights, logits) / weight
        entropy = exact
        if self.published:
            p = weights / weight[:, None]
            entropy = -torch.linalg.vecdot(p, (p + 1e-8).log())
        kl = torch.full_like(exact, torch.nan)
        if self.unigram is not None:
            kl = -exact - product(weights, self.unigram.to(weights)[:, None])[:, 0] / weight
        aimed = logits.gather(1, target.clamp(min=0)[:, None])
        rank = (logits > aimed).sum(-1)
        loss = total - aimed[:, 0]
        return loss.masked_fill(~present, torch.nan), entropy, rank.masked_fill(~present, -1), kl


def stacked(parts: Sequence[TokenMeasures]) -> TokenMeasures:
    """Measures of several versions as one, in a new leading dimension."""
    return TokenMeasures(*(torch.stack([getattr(part, name) for part in parts]) for name in _FIELDS))


def log_unigram(counts: Tensor) -> Tensor:
    """Log-frequency of every token [vocabulary] float32, add-one smoothed.

    Args:
        counts: occurrences of each id [vocabulary].
    """
    smoothed = counts.double() + 1
    return (smoothed / smoothed.sum()).log().float()


def next_tokens(tokens: Tensor) -> Tensor:
    """The true next token at each position, -1 at the last [batch, position]."""
    return torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -1)), 1)


def _wide(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
