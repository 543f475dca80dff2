"""Which model something was made on, so that it runs on no other one unasked."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from interpcore.errors import Refused
from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.weights import model_hash
from interpcore.runs import same_weights
from interpcore.runs.fields import Fields

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class MadeOn:
    """The model that scores, a circuit, means or an operator come from: weights under a plan.

    Args:
        weights: `model_hash`, as on a run card.
        plan: hash of the plan, as on a run card.
    """

    weights: str
    plan: str

    @classmethod
    def of(cls, model: Model | GenericModel) -> MadeOn:
        """This model."""
        plan = hashlib.sha256(repr(model.plan).encode()).hexdigest()
        return cls(model_hash(model), plan)

    @classmethod
    def read(cls, header: Fields) -> MadeOn | None:
        """What a file's header says; None for files that do not record it."""
        if "weights" not in header.content:
            return None
        return cls(header.text("weights", empty=False), header.text("plan", empty=False))

    def same(self, other: MadeOn) -> bool:
        """Whether both are one model under one plan."""
        return same_weights(self.weights, other.weights) and self.plan == other.plan

    def to_json(self) -> dict[str, str]:
        """The entries of a file's header."""
        return asdict(self)


def check_made_on(
    model: Model | GenericModel, made_on: MadeOn | None, what: str, other_model: bool = False
) -> None:
    """Refuse to run something on another model than it was made on.

    Args:
        model: that is to run it.
        made_on: where it was made; None, where that was not recorded, passes.
        what: what begins the sentence, with its verb.
        other_model: run it all the same.
    Raises: Refused with both hashes.
    """
    if made_on is None or other_model:
        return
    here = MadeOn.of(model)
    if same_weights(made_on.weights, here.weights):
        what_differs, theirs, ours = "plan", made_on.plan, here.plan
    else:
        what_differs, theirs, ours = "weights", made_on.weights, here.weights
        if theirs.partition("-")[0] == ours.partition("-")[0]:
            what_differs = "settings (epsilon of norms, activation, factors), of equal weights,"
    if not made_on.same(here):
        raise Refused(
            f"{what} made on a model with other {what_differs} ({_short(theirs)}) than {model.spec.name} has "
            f"({_short(ours)}); take the model that it was made on, or say other_model=True (--other-model)."
        )


def _short(hashed: str) -> str:
    """A hash as a sentence quotes it: its beginning, and that of what stands behind a dash."""
    weights, dash, config = hashed.partition("-")
    return weights[:12] + dash + config[:6]
