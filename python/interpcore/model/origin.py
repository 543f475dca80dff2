"""Where a model came from, so that another process can load it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from interpcore.errors import Refused
from interpcore.model.recurrence import names_state
from interpcore.model.weights import model_hash
from interpcore.runs import same_weights

if TYPE_CHECKING:
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
        loader: what loads from here: `load`, which stands above this file and puts itself in.
    """

    source: str
    dtype: torch.dtype
    device: str
    revision: str | None = None
    trust_remote_code: bool = False
    quantised: str | None = None
    loader: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def load(self, plan: Plan | None = None, weights: str | None = None) -> Any:
        """The model again, as a worker needs it.

        Args:
            plan: the plan to run; None takes the checkpoint's own.
            weights: the hash that its weights must have (`model_hash`); None takes any.
        Raises: ValueError where the same place now holds other weights.
        """
        if self.loader is None:
            raise Refused(f"Nothing is known that loads {self.source}; load it by its name.")
        model = self.loader(
            self.source,
            dtype=self.dtype,
            device=self.device,
            revision=self.revision,
            check=weights is None,
            trust_remote_code=self.trust_remote_code,
        )
        if weights is not None and not same_weights(model_hash(model), weights):
            raise Refused(
                f"{self.source} now holds other weights than the model that was loaded from there; put the "
                "old ones back, or begin anew with the new ones."
            )
        return model if plan is None or plan == model.plan else model.with_plan(plan)


def reloader(model: Any) -> Callable[[], Any]:
    """What loads this very model in another process: the same weights, the same plan. It can be pickled.

    Raises: Refused for a model that was made of an object in memory.
    """
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
    return partial(model.origin.load, model.plan, model_hash(model))
