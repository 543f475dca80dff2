"""The study of a model's circuits: its cells, tables, figures and reports."""
