"""Neurons: what they activate on, what they write, and which of them different models share.

A neuron's activation is what the down projection reads (Gurnee et al. 2024, arXiv 2401.12181, is the study
that this family follows and extends).

Tokens once, all statistics
    `summarize` (its result is a `summary.Summary`): `token_pass` feeds the accumulators of `accumulate`, of
    which `moment_errors`, `quadrants` (of gated neurons) and `labels` are this family's own.
Against other models
    `correlate` with `universal`, `jackknife`, `sketch`, `null_baselines`, as `correlation_steps` of a study;
    `extremes` is what is kept of similarities, and of cosines.
Weights
    `weights` (norms folded in, writing weights centred), `cosines`, `composition`, `weight_study`.
What a neuron responds to
    `features` (rules on tokens in `features.json`), `labels` (in their sequence), `spacy_labels`, `explain`,
    `positions`, `explanation_study`.
What it does
    `interventions` with `intervention_study`, `deactivation` with `deactivation_study`, `cache`.
Together
    `dataframe` (one row per neuron), `families`, `published` (tables), `neuron_study.NeuronStudy` (a folder
    with every step; `study_tables`), `neuron_page`, `report` (all figures).
"""
