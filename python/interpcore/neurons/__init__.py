"""Neurons: what they activate on, what they write, and which of them different models share."""
