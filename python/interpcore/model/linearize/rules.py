"""Local rules: what each nonlinear part of a block passes on in place of its exact derivative."""

from __future__ import annotations

from dataclasses import dataclass, field

from interpcore.errors import Refused

CHOICES = {
    "norm": ("exact", "frozen"),
    "scores": ("exact", "frozen"),
    "values": ("exact", "frozen"),
    "activation": ("exact", "ratio"),
    "product": ("exact", "half"),
    "precision": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class Rules:
    """Rules of the linearised blocks; the default is the exact derivative.

    Args:
        norm: "frozen" treats the norm's scale as a constant.
        scores: "frozen" treats attention probabilities, and those of a router, as constants.
        values: "frozen" passes nothing through attention's values.
        activation: "ratio" replaces act'(x) by act(x) / x (RelP).
        product: "half" gives each factor of a gated MLP half of the product's derivative (RelP).
        dropped: branches that pass nothing on, as ("attention" or "mlp", block call) pairs (GradDrop).
        precision: of the dense products, "float32" (the model's own) or "bfloat16"; the stream and everything
            between products stay in the model's precision, but for the MLP's inner activations.
    """

    norm: str = "exact"
    scores: str = "exact"
    values: str = "exact"
    activation: str = "exact"
    product: str = "exact"
    dropped: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    precision: str = "float32"

    def __post_init__(self) -> None:
        for part, choices in CHOICES.items():
            if getattr(self, part) not in choices:
                raise Refused(
                    f"The rule for {part} is one of {', '.join(choices)}; got {getattr(self, part)!r}."
                )
        wrong = [d for d in self.dropped if d[0] not in ("attention", "mlp")]
        if wrong:
            raise Refused(f"Dropped branches are ('attention' or 'mlp', call); got {wrong[0]}.")

    @classmethod
    def relp(cls) -> Rules:
        """Relevance patching: norms and attention probabilities frozen, activations by their ratio, gates
        halved."""
        return cls(norm="frozen", scores="frozen", activation="ratio", product="half")

    @property
    def exact(self) -> bool:
        """Whether these are plain derivatives."""
        return self == Rules()


EXACT = Rules()
