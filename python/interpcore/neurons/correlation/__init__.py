"""Neurons of several models against one another: sums, similarities, errors, universality."""
