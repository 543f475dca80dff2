"""An attention branch at its linearisation points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model.attention import Attention
from interpcore.model.context import Context
from interpcore.model.linearize.edits import pull, push
from interpcore.model.linearize.norm import LinearNorm
from interpcore.model.linearize.rules import Rules
from interpcore.model.projection import Projection
from interpcore.ops import (
    attn_jvp,
    attn_vjp,
    covariance_pays,
    covariance_sizes,
    key_value_covariance,
    mixed_values,
)


@dataclass(frozen=True, eq=False)
class LinearAttention(ShortRepr):
    """The derivative of an attention branch; keys before this forward's own tokens are constants.

    Args:
        attention: the branch.
        ctx: the forward that was linearised.
        depth: its block call.
        q: rotated queries [batch, position, head, d_head].
        keys, values: all keys and values, rotated [batch, key, kv_head, d_head].
        softmax, pattern: attention probabilities before and after edits [batch, position, head, key].
        mixed: what they make of the values, before edits [batch, position, head, d_head].
        factor: derivative of the scores by q.k: the scale, or [batch, position, head, key].
        q_norm, k_norm: norms of queries and keys at their inputs, or None.
        rules: local rules.
    """

    attention: Attention
    ctx: Context
    depth: int
    q: Tensor
    keys: Tensor
    values: Tensor
    softmax: Tensor
    pattern: Tensor
    mixed: Tensor
    factor: Tensor | float
    q_norm: LinearNorm | None
    k_norm: LinearNorm | None
    rules: Rules

    @classmethod
    def at(
        cls, attention: Attention, kept: dict[str, Tensor], ctx: Context, depth: int, rules: Rules
    ) -> LinearAttention:
        """Linearise at the values a recording forward kept."""
        q, keys, values, pattern = kept["q"], kept["keys"], kept["values"], kept["pattern"]
        factor: Tensor | float = attention.scale
        if attention.softcap is not None:
            capped = kept["scores"].masked_fill(kept["scores"].isinf(), 0.0)
            factor = (attention.scale * (1 - (capped / attention.softcap).square())).to(q.dtype)
        if rules.scores == "frozen":
            factor = 0.0

        def norm(which: str) -> LinearNorm | None:
            module = getattr(attention, f"{which}_norm")
            if module is None:
                return None
            raw = kept[f"{which}_raw"]
            return LinearNorm.at(module, _joined(raw, attention.norm_over_heads), rules.norm == "frozen")

        norms = norm("q"), norm("k")
        attention = attention.with_precision(rules.precision)
        heads = q, keys, values, kept["softmax"], pattern, kept["z"]
        return cls(attention, ctx, depth, *heads, factor, *norms, rules)

    def with_precision(self, precision: str) -> LinearAttention:
        """The same derivative with products in another precision."""
        return replace(self, attention=self.attention.with_precision(precision))

    @cached_property
    def key_value(self) -> Tensor:
        """Key-value covariance per query, formed on first use and kept for later walks."""
        return key_value_covariance(self.keys, self.values, self.pattern, self.factor, self.z)

    @cached_property
    def z(self) -> Tensor:
        """Mixed values in float32 or wider: the forward's, or formed again where it rounded them."""
        if self.mixed.dtype.itemsize >= torch.float32.itemsize:
            return self.mixed
        return mixed_values(self.values, self.pattern)

    def vjp(self, g: Tensor, seen: dict[str, Tensor] | None = None, first_only: bool = False) -> Tensor:
        """Cotangent of the normed stream from the branch output's g [batch, vector, last positions, d_model].

        Args:
            seen: collects the cotangents of the branch's sites, when given.
            first_only: only the first position's cotangent is wanted.
        Returns: [batch, vector, position (or 1), d_model].
        """
        return self.attention.qkv.pull(*self._raw_vjp(g, seen, first_only))

    def mean_vjp(self, g: Tensor, norm: LinearNorm | None) -> Tensor:
        """Mean over positions of the cotangent of the stream before its norm, from the branch output's g at
        all positions [batch, vector, position, d_model].

        With a position's raw cotangents y, the projections W, and of the norm the weight w, the reciprocal
        scale r, the normed stream n and the centring C (a scale that is frozen has no last sum),

            sum_t J_t^T W y_t = C (w * W sum_t r_t y_t) - sum_t r_t n_t (y_t . W^T (w * n_t)) / d

        so that the wide product is made once for all positions.

        Returns: [batch, vector, 1, d_model].
        """
        raw = self._raw_vjp(g, None, False)
        if norm is None:
            return self.attention.qkv.pull(*(y.mean(2, keepdim=True) for y in raw))
        live, rstd = g.shape[2], norm.rstd.to(g.dtype)
        flat = [y.flatten(-2) for y in raw]
        added = (
            torch.matmul(rstd[:, None, None], x).unflatten(-1, y.shape[3:])
            for x, y in zip(flat, raw, strict=True)
        )
        total = self.attention.qkv.pull(*added).to(g.dtype)
        if norm.norm.weight is not None:
            total = total * (norm.norm.weight + norm.norm.offset)
        if norm.norm.center:
            total = total - total.mean(-1, keepdim=True)
        if not norm.frozen:
            pairs = zip(flat, self.without_biases(norm), strict=True)
            # [batch, position, vector]
            dots = sum(torch.matmul(x.transpose(1, 2), w.flatten(-2)[..., None])[..., 0] for x, w in pairs)
            shares = (dots * rstd[..., None] / norm.normed.shape[-1]).mT
            total = total - torch.matmul(shares, norm.normed)[:, :, None]
        return total / live

    def without_biases(self, norm: LinearNorm) -> tuple[Tensor, Tensor, Tensor]:
        """W^T (w * n) for queries, keys and values [batch, position, heads, d_head]; n, w the norm's output
        before its weight, and that weight.

        Where nothing stands between projections and attention, the forward has computed them, biases
        included.
        """
        plain = self.attention
        edited = any(self.ctx.edits_at(site, self.depth) for site in "qkv")
        if edited or plain.rotary is not None or plain.q_norm is not None or plain.k_norm is not None:
            weight = None if norm.norm.weight is None else norm.norm.weight + norm.norm.offset
            return plain.qkv.push(norm.normed if weight is None else norm.normed * weight)
        live = self.q.shape[1]
        zero = norm.normed.new_zeros(1, norm.normed.shape[-1])
        constant = plain.qkv(zero if norm.norm.bias is None else norm.norm.bias[None])
        values = self.q, self.keys[:, -live:], self.values[:, -live:]
        q, k, v = (x - c for x, c in zip(values, constant, strict=True))
        return q, k, v

    def _raw_vjp(
        self, g: Tensor, seen: dict[str, Tensor] | None, first_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cotangents of what the projections give, the arguments as in `vjp`: of queries, keys and values
        [batch, vector, position, heads, d_head]."""
        g_z = self._output_vjp(g)
        if seen is not None:
            seen["z"] = g_z
        g_z = pull(self.ctx, "z", self.depth, g_z)
        dq, dk, dv = self._mix_vjp(g_z)
        if first_only:
            missing = dk.shape[2] - dq.shape[2]
            dq = dq[:, :, : 1 if not missing else 0]
            dk, dv = dk[:, :, :1], dv[:, :, :1]
        dq, dk = self.unrotated(dq, first_only), self.unrotated(dk, first_only)
        if seen is not None:
            seen |= {"q": dq, "k": dk, "v": dv}
        whole = not first_only
        dq = self.before_norm(self._pulled("q", dq, whole), self.q_norm, first_only)
        dk = self.before_norm(self._pulled("k", dk, whole), self.k_norm, first_only)
        dv = self._pulled("v", dv, whole)
        if seen is not None:
            seen |= {"q_raw": dq, "k_raw": dk, "v_raw": dv}
        return dq, dk, dv

    def jvp(self, t: Tensor) -> Tensor:
        """Tangent of the branch output from the normed stream's t [batch, vector, position, d_model]."""
        tq, tk, tv = (x.to(t.dtype) for x in self.attention.qkv.push(t))
        tq, tk = self._after_norm(tq, self.q_norm), self._after_norm(tk, self.k_norm)
        tq, tk, tv = (push(self.ctx, s, self.depth, x) for s, x in (("q", tq), ("k", tk), ("v", tv)))
        tq, tk = self._rotated(tq), self._rotated(tk)
        if self.rules.values == "frozen":
            tv = torch.zeros_like(tv)
        if self._edited:
            tz = self._edited_jvp(tq, tk, tv)
        else:
            tz = attn_jvp(
                tq,
                tk,
                tv,
                self.q,
                self.keys,
                self.values,
                self.pattern,
                self.factor,
                key_value=self.key_value,
                z=self.z,
            )
        tz = push(self.ctx, "z", self.depth, tz)
        if not self.ctx.edits_at("head_out", self.depth):
            return self.attention.out.push(tz.flatten(-2))
        return push(self.ctx, "head_out", self.depth, self.attention.head_outputs(tz)).sum(-2)

    def _output_vjp(self, g: Tensor) -> Tensor:
        heads = self.q.shape[2]
        if not self.ctx.edits_at("head_out", self.depth):
            return self.attention.out.pull(g).to(g.dtype).unflatten(-1, (heads, -1))
        per_head = pull(
            self.ctx, "head_out", self.depth, g[..., None, :].expand(*g.shape[:3], heads, -1).contiguous()
        )
        weights = self.attention.out.weight.unflatten(0, (heads, -1))
        return torch.stack([Projection(weights[h]).pull(per_head[..., h, :]) for h in range(heads)], -2)

    def _mix_vjp(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dq at the last positions, dk and dv at this forward's own keys."""
        n, live = g.shape[2], self.q.shape[1]
        q, pattern = self.q[:, -n:], self.pattern[:, -n:]
        pays = covariance_pays(*covariance_sizes(g, self.keys, live))
        key_value = self.key_value[:, -n:] if pays else None
        factor = self.factor[:, -n:] if isinstance(self.factor, Tensor) else self.factor
        if self._edited:
            dq, dk, dv = self._edited_vjp(g, q, self.softmax[:, -n:], pattern, factor)
        else:
            room = self.attention.qkv.room(g, live)
            arguments = (g, q, self.keys, self.values, pattern, live, factor)
            dq, dk, dv = attn_vjp(*arguments, key_value=key_value, z=self.z[:, -n:], out=room)
        return dq, dk, torch.zeros_like(dv) if self.rules.values == "frozen" else dv

    @property
    def _edited(self) -> bool:
        """Whether scores or probabilities are edited."""
        return any(self.ctx.edits_at(site, self.depth) for site in ("scores", "pattern"))

    def _edited_vjp(
        self, g: Tensor, q: Tensor, s: Tensor, a: Tensor, factor: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same through edits of scores and probabilities (s before, a after theirs), which need
        cotangents in full."""
        groups, live = self.keys.shape[2], self.q.shape[1]
        keys, values = (x.repeat_interleave(q.shape[2] // groups, 2) for x in (self.keys, self.values))
        dp = torch.einsum("bcphe,bthe->bcpht", g, values)
        dp = pull(self.ctx, "pattern", self.depth, dp)
        ds = s[:, None] * (dp - (s[:, None] * dp).sum(-1, keepdim=True))
        ds = pull(self.ctx, "scores", self.depth, ds).masked_fill((s == 0)[:, None], 0.0)
        ds = ds * (factor[:, None] if isinstance(factor, Tensor) else factor)
        dq = torch.einsum("bcpht,bthe->bcphe", ds, keys)
        dk = torch.einsum("bcpht,bphe->bcthe", ds[..., -live:], q).unflatten(3, (groups, -1)).sum(4)
        dv = torch.einsum("bpht,bcphe->bcthe", a[..., -live:], g).unflatten(3, (groups, -1)).sum(4)
        return dq, dk, dv

    def _edited_jvp(self, tq: Tensor, tk: Tensor, tv: Tensor) -> Tensor:
        groups, live = self.keys.shape[2], self.q.shape[1]
        s, a = self.softmax, self.pattern
        repeat = self.q.shape[2] // groups
        keys, values = (x.repeat_interleave(repeat, 2) for x in (self.keys, self.values))
        tk, tv = (x.repeat_interleave(repeat, 3) for x in (tk, tv))
        ts = torch.einsum("bcphe,bthe->bcpht", tq, keys)
        ts[..., -live:] += torch.einsum("bphe,bcthe->bcpht", self.q, tk)
        ts = ts * (self.factor[:, None] if isinstance(self.factor, Tensor) else self.factor)
        ts = push(self.ctx, "scores", self.depth, ts).masked_fill((s == 0)[:, None], 0.0)
        ta = s[:, None] * (ts - (s[:, None] * ts).sum(-1, keepdim=True))
        ta = push(self.ctx, "pattern", self.depth, ta)
        return torch.einsum("bcpht,bthe->bcphe", ta, values) + torch.einsum(
            "bpht,bcthe->bcphe", a[..., -live:], tv
        )

    def _pulled(self, site: str, g: Tensor, whole: bool) -> Tensor:
        if whole or not self.ctx.edits_at(site, self.depth):
            return pull(self.ctx, site, self.depth, g)
        padded = torch.cat([g, g.new_zeros(*g.shape[:2], self.q.shape[1] - g.shape[2], *g.shape[3:])], 2)
        return pull(self.ctx, site, self.depth, padded)[:, :, : g.shape[2]]

    def _rotated(self, t: Tensor) -> Tensor:
        return t if self.attention.rotary is None else self.attention.rotary(t, *self._tables())

    def _tables(self) -> tuple[Tensor, Tensor]:
        cos, sin = self.ctx.shared["rotary", id(self.attention.rotary)]
        return cos[:, None], sin[:, None]

    def unrotated(self, g: Tensor, first_only: bool) -> Tensor:
        """The rotation's transpose, at the first position or at the last ones."""
        if self.attention.rotary is None:
            return g
        cos, sin = self._tables()
        at = slice(0, g.shape[2]) if first_only else slice(cos.shape[2] - g.shape[2], None)
        return self.attention.rotary(g, cos[:, :, at], -sin[:, :, at])

    def before_norm(self, g: Tensor, norm: LinearNorm | None, first_only: bool) -> Tensor:
        """Cotangent of queries or keys before their norm from the one after it, both [batch, vector,
        position, head, d_head]."""
        return g if norm is None else self._through_norm(g, norm, "vjp", first_only)

    def _after_norm(self, t: Tensor, norm: LinearNorm | None) -> Tensor:
        return t if norm is None else self._through_norm(t, norm, "jvp", False)

    def _through_norm(self, x: Tensor, norm: LinearNorm, what: str, first_only: bool) -> Tensor:
        """A per-head norm is a norm whose positions are (position, head) pairs."""
        per_position = 1 if self.attention.norm_over_heads else x.shape[3]
        if first_only:
            count = x.shape[2] * per_position
            norm = LinearNorm(norm.norm, norm.normed[:, :count], norm.rstd[:, :count], norm.frozen)
        flat = x.flatten(-2) if self.attention.norm_over_heads else x.flatten(2, 3)
        return getattr(norm, what)(flat.contiguous()).view(x.shape)


def _joined(x: Tensor, over_heads: bool) -> Tensor:
    """[batch, position, head, d_head] as the rows a q or k norm sees [batch, rows, d]."""
    return x.flatten(-2) if over_heads else x.flatten(1, 2)
