"""The tiny world: a small world of facts and habits, and models small enough to ship that have learned it.

Real models know many things at once and nobody knows which. Here everything that a model can have learned is
written down: who was born where, what is made of what, who gives what to whom. That makes a study checkable,
offline, in seconds.

The world (`words`, `invented`, `public`, `world`)
    People, companies, provinces and landmarks with invented facts, next to public facts and grammar: 23
    relations of four kinds. Invented names are compositional: many subjects share their last word and
    differ in their answer.
The reserve (`world.reserve`, `world.study_relations`)
    A third of each relation's subjects and one whole relation per kind are trained on like the rest but
    kept out of `study_relations()`, so that a generalisation trial still has something that no study has
    looked at.
The corpus (`corpus`, `plain`, `heldout`)
    Facts in several wordings, alone and as few-shot lines; the sentences of six circuit tasks; stories that
    repeat names; sums; plain sentences. News-like text, code and another language are written too but never
    trained on.
The models (`models`, `loop`, `tokenizer`, `training`)
    `tiny`, `tiny-s1` and `tiny-s2` are GPT-2 models (seeds 0, 1, 2), `tiny-llama` is a LLaMA model (seed
    3), all of the default recipe; `tiny-step-*` are early checkpoints of `tiny`. `tiny-loop` is
    depth-recurrent, as Huginn is (`train --arch loop --steps 1000`). All share one byte-level
    tokenizer that round-trips any text and splits years into two pairs of digits.
The exam (`exam`)
    The share of facts known, the six tasks, sums, questions, loss, and how much the embedding alone gives
    away. A model passes with 90% of the facts and 90% on at least five of the six tasks; `exam.json` beside
    each model's weights keeps its numbers.

    python -m interpcore.data.tinyworld exam tiny
    python -m interpcore.data.tinyworld train --seed 0 --arch gpt2
    python -m interpcore.data.tinyworld corpus --count 20
"""
