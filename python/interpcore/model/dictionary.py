"""Dictionaries of an activation: sparse autoencoders and transcoders, whose latents are sites of a model.

A sparse autoencoder writes an activation x as sum_j f_j(x) W_dec[j] + b_dec + error. A transcoder reads one
site and writes another, as an MLP does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.maps import Function
from interpcore.model.sites import SITES, Edit, Positions, Tap
from interpcore.ops import product

ACTIVATIONS = ("relu", "jumprelu", "topk")


@dataclass(frozen=True, eq=False)
class Dictionary(ShortRepr):
    """f(x) = act((x - centre) W_enc + b_enc), and what the latents write: f W_dec + b_dec + x W_skip.

    Args:
        name: in tables.
        reads: the site of x, and its depth; heads of `z` side by side.
        writes: the site of what is written; that of x for an autoencoder.
        encoder: W_enc [d_in, latent].
        encoder_bias: b_enc [latent].
        decoder: W_dec [latent, d_out].
        decoder_bias: b_dec [d_out].
        activation: "relu"; "jumprelu": x where x > threshold, else 0; "topk": the k largest, those above 0.
        threshold: of jumprelu [latent], or None.
        k: of topk, or None.
        centred: the decoder's bias is taken from x first.
        skip: W_skip [d_in, d_out], or None.
    """

    name: str
    reads: tuple[str, int | None]
    writes: tuple[str, int | None]
    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    activation: str = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    centred: bool = False
    skip: Tensor | None = None

    def __post_init__(self) -> None:
        d_in, latents = self.encoder.shape
        d_out = self.decoder.shape[-1]
        wanted: dict[str, tuple[int, ...]] = {
            "encoder_bias": (latents,),
            "decoder": (latents, d_out),
            "decoder_bias": (d_out,),
            "threshold": (latents,),
            "skip": (d_in, d_out),
        }
        for name, shape in wanted.items():
            found = getattr(self, name)
            if found is not None and tuple(found.shape) != shape:
                raise Refused(f"{self.name}: {name} has shape {list(found.shape)}; it is {list(shape)}.")
        if self.activation not in ACTIVATIONS:
            raise Refused(f"{self.name}: activation is one of {', '.join(ACTIVATIONS)}.")
        given = (self.threshold is not None, self.k is not None)
        if given != (self.activation == "jumprelu", self.activation == "topk"):
            raise Refused(f"{self.name}: a threshold belongs to jumprelu, a k to topk, each always.")
        if self.k is not None and not 1 <= self.k <= latents:
            raise Refused(f"{self.name}: k is {self.k}, of {latents} latents.")
        if self.centred and d_in != d_out:
            raise Refused(f"{self.name}: a bias of {d_out} entries cannot be taken from {d_in}.")

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.encoder.shape[1]

    @property
    def autoencoder(self) -> bool:
        """Whether it writes what it reads."""
        return self.reads == self.writes

    def tap(self) -> Tap:
        """Reads the activation that it is of."""
        return Tap(*self.reads)

    def pre(self, x: Tensor) -> Tensor:
        """Latents before the activation [..., latent] of x [..., d_in], or of z [..., head, d_head]."""
        x = _flat(x, self.encoder.shape[0])
        return product(x - self.decoder_bias if self.centred else x, self.encoder, bias=self.encoder_bias)

    def activate(self, pre: Tensor) -> Tensor:
        """Latents of what `pre` gave, both [..., latent]."""
        if self.activation == "relu":
            return pre.relu()
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return pre.where(pre > self.threshold, 0)
        assert self.k is not None
        top = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())

    def latents(self, x: Tensor) -> Tensor:
        """Latents [..., latent] of x [..., d_in]."""
        return self.activate(self.pre(x))

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """What latents [..., latent] write [..., d_out]; x [..., d_in] is needed where there is a skip."""
        written = product(latents, self.decoder, bias=self.decoder_bias)
        if self.skip is None:
            return written
        if x is None:
            raise Refused(f"{self.name} passes part of what it reads on; give x, too.")
        return written + product(_flat(x, self.skip.shape[0]), self.skip)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the dictionary makes of x [..., d_in]: [..., d_out]."""
        return self.decode(self.latents(x), x)

    def error(self, x: Tensor, written: Tensor | None = None) -> Tensor:
        """What is missing to the site that it writes, [..., d_out]: reconstruct(x) + error = site.

        Args:
            x: what it reads.
            written: what stands at the site that it writes; None for an autoencoder, where that is x.
        """
        if written is None and not self.autoencoder:
            raise Refused(f"{self.name} reads {self.reads[0]} and writes {self.writes[0]}; give that, too.")
        return _flat(x if written is None else written, self.decoder.shape[1]) - self.reconstruct(x)

    def setting(
        self, values: Mapping[int, float], positions: Positions = None, rows: Sequence[int] | None = None
    ) -> Edit:
        """An edit that sets latents and leaves the rest of the activation, its error too, as it is:
        x + sum_j (value_j - f_j(x)) W_dec[j].

        Args:
            values: latent -> value; 0 takes it away.
            positions, rows: as in `Edit`.
        Raises: Refused for a latent that there is not, and for a transcoder.
        """
        if not self.autoencoder:
            raise Refused(f"{self.name} writes another site than it reads; only an autoencoder's are set.")
        wrong = next((j for j in values if not 0 <= j < self.n_latents), None)
        if wrong is not None:
            raise Refused(f"{self.name} has no latent {wrong}, but {self.n_latents}.")
        chosen = torch.tensor(list(values), device=self.encoder.device)
        goal = torch.tensor(list(values.values()), dtype=self.decoder.dtype, device=self.decoder.device)

        def moved(x: Tensor) -> Tensor:
            change = (goal - self.latents(x)[..., chosen]) @ self.decoder[chosen]
            return x + change.reshape(x.shape)

        return Edit(*self.reads, positions, Function(moved), rows=rows)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Dictionary:
        """With its tensors elsewhere, or of another type."""
        names = ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold", "skip")
        moved = {n: x.to(device=device, dtype=dtype) for n in names if (x := getattr(self, n)) is not None}
        return replace(self, **moved)


def site_width(model: Any, site: str) -> int:
    """Entries of a site at one position, its heads side by side.

    Raises: Refused for a site without one width.
    """
    spec = model.spec
    sizes = {"d_model": spec.d_model, "d_mlp": spec.d_mlp, "d_head": spec.d_head, "head": spec.n_heads}
    sizes |= {"kv_head": spec.n_kv_heads}
    axes = SITES[site].shape.strip("[]").split(", ")[2:]
    if not all(axis in sizes for axis in axes):
        raise Refused(f"A dictionary of {site} is none: its size is not the model's.")
    width = 1
    for axis in axes:
        width *= sizes[axis]
    return width


def _flat(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else x.flatten(-2)
