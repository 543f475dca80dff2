"""Scores by gradients: EAP, EAP-IG, information flow routes and their kin."""
