"""Where a model came from, so that another process can load it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from interpcore.errors import Refused
from interpcore.model.recurrence import names_state

if TYPE_CHECKING:
    from interpcore.model.decoder import Model
    from interpcore.model.generic import GenericModel
    from interpcore.model.plan import Plan


@dataclass(frozen=True)
class Origin:
    """What `load` took, settled: loading it again gives the same weights.

    Args:
        source: an embedded model's name, a folder's absolute path, or a hub id.
        dtype: of the weights.
        device: where they are.
        revision: the hub's commit that was read; None for embedded models and folders, which have none.
        trust_remote_code: whether the checkpoint's own Python code ran.
        quantised: how the weights had been quantised before they were read; None where nothing says so.
    """

    source: str
    dtype: torch.dtype
    device: str
    revision: str | None = None
    trust_remote_code: bool = False
    quantised: str | None = None

    def load(self, plan: Plan | None = None, weights: str | None = None) -> Model | GenericModel:
        """The model again, as a worker needs it.

        Args:
            plan: the plan to run; None takes the checkpoint's own.
            weights: the hash that its weights must have (`weights_hash`); None takes any.
        Raises: ValueError where the same place now holds other weights.
        """
        # Loading is above this file, which only models name.
        from interpcore.model.card import weights_hash
        from interpcore.model.load import load

        model = load(
            self.source,
            dtype=self.dtype,
            device=self.device,
            revision=self.revision,
            check=weights is None,
            trust_remote_code=self.trust_remote_code,
        )
        if weights is not None and weights_hash(model) != weights:
            raise Refused(
                f"{self.source} now holds other weights than the model that was loaded from there; put the "
                "old ones back, or begin anew with the new ones."
            )
        return model if plan is None or plan == model.plan else model.with_plan(plan)


def reloader(model: Model | GenericModel) -> Callable[[], Model | GenericModel]:
    """What loads this very model in another process: the same weights, the same plan. It can be pickled.

    Raises: Refused for a model that was made of an object in memory.
    """
    from interpcore.model.card import weights_hash

    if model.origin is None:
        raise Refused(
            f"{model.spec.name} was made of an object in memory, which another process cannot load; use one "
            "worker, or save it to a folder and load that."
        )
    if any(names_state(call.module, given=True) for call in model.plan.calls):
        raise Refused(
            f"{model.spec.name} starts from a state that was given as a tensor, which another process cannot "
            "make; use one worker, or a seed."
        )
    return partial(model.origin.load, model.plan, weights_hash(model))
