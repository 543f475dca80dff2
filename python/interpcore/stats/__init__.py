"""Statistics that know no model: intervals, correlations, and accumulators over blocks of tokens."""

from interpcore.ops.bins import LinearBins, OctaveBins
from interpcore.stats.accumulators import Accumulator, MergeError, Ranges, TokenBlock
from interpcore.stats.auroc import auroc
from interpcore.stats.group_sums import GroupSums, GroupTotals
from interpcore.stats.histograms import Histogram, HistogramCounts
from interpcore.stats.intervals import (
    Interval,
    correlation,
    jackknife_interval,
    mean_over_clusters,
    paired_sign_test,
    rank_correlation,
    ratio_of_means,
)
from interpcore.stats.matching import mutual, one_to_one
from interpcore.stats.moments import Moments
from interpcore.stats.paired import paired_difference
from interpcore.stats.paired_mean import PairedMean
from interpcore.stats.top_examples import Examples, TopExamples

__all__ = [
    "Accumulator",
    "Examples",
    "GroupSums",
    "GroupTotals",
    "Histogram",
    "HistogramCounts",
    "Interval",
    "LinearBins",
    "MergeError",
    "Moments",
    "OctaveBins",
    "PairedMean",
    "Ranges",
    "TokenBlock",
    "TopExamples",
    "auroc",
    "correlation",
    "jackknife_interval",
    "mean_over_clusters",
    "mutual",
    "one_to_one",
    "paired_difference",
    "paired_sign_test",
    "rank_correlation",
    "ratio_of_means",
]
