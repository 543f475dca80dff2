"""Points and weights of integrated gradients, on the path from the corrupted input (0) to the clean (1)."""

from __future__ import annotations

from interpcore.circuits.graph import GraphError

NODES = ("midpoint", "left", "right", "gauss")


def path_points(steps: int, nodes: str = "midpoint") -> tuple[list[float], list[float]]:
    """Where gradients are taken on the path, and their weights, which add up to 1.

    Args:
        steps: m, number of gradients.
        nodes: "midpoint" ((k + 1/2) / m), "left" (k / m for k = 0..m-1, the published package), "right"
            (k / m for k = 1..m, the paper) or "gauss" (Gauss-Legendre).
    Returns: points and weights, `steps` each.
    Raises: GraphError for unknown nodes or no step.
    """
    if nodes not in NODES:
        raise GraphError(f"The nodes of an integral are {', '.join(NODES)}; got {nodes!r}.")
    if steps < 1:
        raise GraphError(f"Integrated gradients take at least 1 step; got {steps}.")
    if nodes == "gauss":
        from numpy.polynomial.legendre import leggauss

        points, weights = leggauss(steps)
        return [(1 + float(x)) / 2 for x in points], [float(w) / 2 for w in weights]
    shift = {"midpoint": 0.5, "left": 0.0, "right": 1.0}[nodes]
    return [(k + shift) / steps for k in range(steps)], [1 / steps] * steps
