"""Patched runs: what stands in on corrupted edges, exact scores, faithfulness of circuits."""
