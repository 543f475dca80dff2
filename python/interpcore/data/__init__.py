"""Data: relations, prompt pairs, choice questions, and the tiny world that ships trained models.

`relations` reads and writes relation files, `prompt_pairs` generates the six circuit tasks for any tokenizer,
`questions` makes choice questions with a reasoning score, `tinyworld` is a small made-up world and its
models.
"""
