"""Data: relations, prompt pairs, choice questions, token shards, and the tiny world that ships trained
models.

`relations` reads and writes relation files, `prompt_pairs` generates the six circuit tasks for any tokenizer,
`questions` makes choice questions with a reasoning score, `tokens` makes memory-mapped shards of a corpus,
`tinyworld` is a small made-up world and its models.
"""
