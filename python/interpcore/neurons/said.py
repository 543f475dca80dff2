"""What the columns of the family's tables are."""

WEIGHTS = (
    "Medians of each layer. w_in, w_out: a neuron's reading and writing vector, their norms and cosine "
    "(sim); vocab_: variance, skewness and kurtosis (normal: 3) of its effects on the logits; null_space: "
    "share of w_out where the unembedding hardly reads."
)
EXPLAINED = (
    "variance_reduction: share of the activation's variance that the feature explains; mean_difference: mean "
    "with it minus mean without, over the mean of all tokens; welch_t: of the same two means. Undefined (-, "
    "empty) where a mean is 0, a neuron never varies or a label is always there."
)
WAVES = (
    "frequency: waves over all values of the token `back` places before; share: of the activation's variance "
    "at that frequency, all: at all of them; phase in radians; tokens: with a number there."
)
CHANGES = (
    "Means over tokens, intervened minus clean: loss and entropy in nats, rank of the true token; norm: the "
    "final norm's scale, as it comes (free) or as in the clean run (frozen)."
)
ABLATED = (
    "Each neuron's path to each later head cut. pattern_change: of the attention to the first token; "
    "norm_change: of the size of the head's output; pearson, spearman: of the activation with that change, "
    "over tokens."
)
SCORED = (
    "bos_score: how a neuron's unit writing vector turns a later head's query to the first token's key, "
    "where that is largest (bos_layer, bos_head); random_level: 99.9th percentile of random directions' "
    "largest over the same heads; deactivates: beyond it."
)
MOVED = (
    "Table: the class of tokens that explains a neuron's effects on the logits best. variance_, skew_ and "
    "kurtosis_reduction: how much smaller that moment is within the class and outside it than over "
    "all tokens, as a share; welch_t: of the effects on the class against the others."
)
