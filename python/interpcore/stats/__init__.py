"""Statistics that know no model: intervals, correlations."""

from interpcore.stats.intervals import Interval, cluster_bootstrap, correlation, paired_above

__all__ = ["Interval", "cluster_bootstrap", "correlation", "paired_above"]
