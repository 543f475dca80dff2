"""The models that a study's neurons are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.load import load
from interpcore.model.weights import weights_hash


def load_partners(names: Sequence[str], model: Model, *, latents: bool = False) -> Sequence[Model]:
    """Models trained apart from one, by name.

    Args:
        names: of the models.
        model: whose dtype and device they take.
        latents: whether the study is of its latents, which its own neurons may be compared with.
    Raises: Refused for a model that has the weights of another one, whatever it is called.
    """
    loaded = [load(name, dtype=model.dtype, device=str(model.device)) for name in names]
    partners = cast(Sequence[Model], loaded)
    seen = {} if latents or not names else {weights_hash(model): model.spec.short_name}
    for name, partner in zip(names, partners, strict=True):
        other = seen.setdefault(weights_hash(partner), name)
        if other is not name:
            raise Refused(
                f"--partner {name} has the weights of {other}: neurons agree with themselves. Give a model "
                "trained apart from it."
            )
    return partners
