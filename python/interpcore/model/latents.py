"""A model whose neurons are the latents of dictionaries: what a study of neurons reads, it reads of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.context import ActivationHook
from interpcore.model.decoder import Model
from interpcore.model.dictionary import Dictionary
from interpcore.model.load.dictionaries import load_dictionaries
from interpcore.model.output import Output
from interpcore.model.sites import Tap
from interpcore.model.weights import Weights


@dataclass(frozen=True, eq=False, repr=False)
class LatentModel(Model):
    """A model that shows a study the latents of dictionaries in place of its neurons.

    `forward(activation=hook)` calls hook(function, pre, i) with the pre-activations [batch, position, latent]
    of dictionary i; what the hook returns changes nothing. All else is the model. Their tensors are among its
    weights, so that every hash tells them apart.

    Args:
        dictionaries: in order.
        found: where they were read, for cards: "dictionaries", and "reads" where it was said.
    """

    dictionaries: tuple[Dictionary, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, dictionaries: Sequence[Dictionary]) -> LatentModel:
        """A model with dictionaries of its activations."""
        if not dictionaries:
            raise Refused("A model's latents need a dictionary.")
        given = {each.name: getattr(model, each.name) for each in fields(Model)}
        name = f"{model.spec.name}+{'+'.join(each.name for each in dictionaries)}"
        given |= {"spec": replace(model.spec, name=name, gated=False), "weights": Weights()}
        modules = {f"dictionary.{i}": each for i, each in enumerate(dictionaries)}
        return cls(**given | {"modules": {**model.modules, **modules}, "dictionaries": tuple(dictionaries)})

    @property
    def widths(self) -> tuple[int, ...]:
        """Latents of each dictionary."""
        return tuple(each.n_latents for each in self.dictionaries)

    @property
    def unwritten(self) -> str | None:
        """As in `Model`."""
        return f"{self.spec.name} has latents for neurons, which are not written out in float64."

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        taps: Sequence[Tap] = (),
        activation: ActivationHook | None = None,
        **how: Any,
    ) -> Output:
        """See `Model.forward`."""
        if activation is None:
            return super().forward(tokens, attention_mask, taps=taps, **how)
        reads = [each.tap() for each in self.dictionaries]
        out = super().forward(tokens, attention_mask, taps=[*taps, *reads], **how)
        for index, (each, tap) in enumerate(zip(self.dictionaries, reads, strict=True)):
            activation(each.activate, each.pre(out.taps[tap]), index)
        return out

    __call__ = forward


def with_latents(model: Model, paths: Sequence[str | Path], **sites: str | None) -> LatentModel:
    """A model whose neurons are the latents of dictionaries in files; another process can load it again.

    Args:
        model: the decoder.
        paths: what `load_dictionaries` reads, one after the other.
        sites: reads and writes, as it takes them.
    Raises: Refused as `load_dictionaries`, and for two of one name and site, which no table tells apart.
    """
    found = [each for path in paths for each in load_dictionaries(path, model, **sites)]
    seen = set()
    for each in found:
        if (each.name, each.reads, each.writes) in seen:
            raise Refused(
                f"Two dictionaries are called {each.name!r} and read the same site; give each once, or one "
                "another name."
            )
        seen.add((each.name, each.reads, each.writes))
    places = [str(Path(path).resolve()) for path in paths]
    said = {name: site for name, site in sites.items() if site is not None}
    made = replace(LatentModel.of(model, found), found={"dictionaries": places, **said})
    if model.origin is None or model.origin.loader is None:
        return made
    loader = partial(_load, model.origin.loader, places, sites)
    return replace(made, origin=replace(model.origin, loader=loader))


def _load(
    loader: Any, paths: list[str], sites: dict[str, str | None], source: str, **how: Any
) -> LatentModel:
    model = loader(source, **how)
    assert isinstance(model, Model)
    return with_latents(model, paths, **sites)
