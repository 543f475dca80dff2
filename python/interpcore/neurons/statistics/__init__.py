"""Tokens once, all statistics: the pass, its accumulators, and what they hold."""
