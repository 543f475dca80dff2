"""Jacobians between residual states of a prompt, at every depth for the price of one."""

from interpcore.model.jacobians.compute import Jacobians, jacobians
from interpcore.model.jacobians.operator import JacobianOperator
from interpcore.model.jacobians.reducers import (
    REDUCERS,
    Dot,
    Mean,
    MeanVariance,
    Reducer,
    Shape,
    Store,
    WeightedMean,
)

__all__ = [
    "REDUCERS",
    "Dot",
    "JacobianOperator",
    "Jacobians",
    "Mean",
    "MeanVariance",
    "Reducer",
    "Shape",
    "Store",
    "WeightedMean",
    "jacobians",
]
