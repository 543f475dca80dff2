"""Neurons: what they activate on, what they write, and which of them different models share.

A neuron's activation is what the down projection reads (Gurnee et al. 2024, arXiv 2401.12181, is the study
that this family follows and extends).

statistics/
    Tokens once, all statistics: `summarize` (its result is a `summary.Summary`). `token_pass` feeds the
    accumulators of `accumulate`; `moment_errors`, `quadrants` (of gated neurons) and `label_sums` (over
    `labels` of tokens in their sequence) are this family's own.
correlation/
    Against other models: `correlate` with `universal`, `jackknife`, `sketch`, `nulls`, as `steps` of a study.
weights/
    `fold` (norms folded in, writing weights centred), `cosines`, `composition`, `study`.
responses/
    What a neuron responds to: `explain`, `positions`, `fourier`, `study`; `features` are rules on tokens.
effects/
    What it does: `interventions` and `intervention_study`, `deactivation` and `deactivation_study`, `saved`
    activations.
report/
    `report` (all figures on a page), `neuron_page`.
Together
    `study.Study` (a folder with every step), `results` (what each experiment shows), `dataframe` (one row
    per neuron), `families`, `published`
    (tables); `extremes` is what is kept of similarities and cosines.
"""
