"""`interpcore demo`: the installation at work."""

from typing import Annotated

import typer

from interpcore.cli.info import info


def demo(
    model: Annotated[str | None, typer.Option(help="A transformers folder or a hub id.")] = None,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "Once upon a time",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add.")] = 32,
) -> None:
    """Show `interpcore info`, then greedy text from a model.

    Example: interpcore demo --model path/to/folder --prompt "Once upon a time"
    """
    info()
    if model is None:
        typer.echo(
            "\nNo model was given: add --model PATH (a transformers folder or a hub id) for greedy text."
        )
        return
    typer.echo("\n" + continue_text(model, prompt, tokens))


def continue_text(model: str, prompt: str, tokens: int) -> str:
    """`prompt` and its greedy continuation by at most `tokens` tokens.

    Raises:
        ValueError: the model has no tokenizer, or the prompt holds no token.
    """
    import torch

    import interpcore

    loaded = interpcore.load(model)
    if loaded.tokenizer is None:
        raise ValueError(f"demo: {model} holds no tokenizer; give a folder that does.")
    ids = loaded.tokenizer(prompt).input_ids
    if not ids:
        raise ValueError("demo: the prompt holds no token; give some text.")
    new = loaded.generate(torch.tensor([ids]), max_new_tokens=tokens).tokens[0].tolist()
    return loaded.tokenizer.decode(ids + new, skip_special_tokens=True)
