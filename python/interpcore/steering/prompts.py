"""From questions to prompts: the question alone, with its options, after worked examples; and back, from a
text to the answer in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from interpcore.data.question_sets import LETTERS
from interpcore.data.questions import Question
from interpcore.errors import Refused
from interpcore.model.output import Decoder
from interpcore.model.prompts import token_ids

ANSWER = re.compile(r"answer is \(?([A-J])\)?")
PUBLISHED = "Q: {question}\nA: "
PUBLISHED_HUGINN = "Q: {question}\n\nA: "


@dataclass(frozen=True)
class Item:
    """A question ready to be asked.

    Args:
        question: the question.
        prompt: token ids.
        options: token ids of each continuation that is scored; () where the answer is generated.
    """

    question: Question
    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...] = ()


def published_template(family: str) -> str:
    """How the published studies ask a model of a family for its states: the question alone."""
    return PUBLISHED_HUGINN if family.startswith("huginn") else PUBLISHED


def fill(template: str, question: Question) -> str:
    """The template with the question in it.

    Raises: Refused for a template without `{question}`.
    """
    if "{question}" not in template:
        raise Refused(f"The template {template!r} has no {{question}} in it.")
    return template.replace("{question}", question.question)


def with_options(question: Question, answered: bool) -> str:
    """A question with its options as the published study writes it, and its answer where it is an example."""
    listed = "".join(f"({LETTERS[i]}): {text}\n" for i, text in enumerate(question.options))
    options = f"Options are:\n{listed}" if listed else ""
    answer = (
        f" The answer is ({question.answer})." if question.options else f" The answer is {question.answer}."
    )
    return f"Q: {question.question}\n{options}A:{answer if answered else ''}"


def asked(
    question: Question, answers: str, template: str, examples: Sequence[Question] = (), before: str = ""
) -> str:
    """The text of a prompt.

    Args:
        question: what is asked.
        answers: "options" (their texts are scored), "letters" (their letters are), "generate".
        template: of the question alone, for "options" and for questions without options.
        examples: answered before it, those of its category where there are some.
        before: what stands in front of all, an instruction.
    """
    own = [e for e in examples if e.category == question.category] or list(examples)
    if answers == "options":
        lines = [f"{fill(template, e)} {e.right[0]}" for e in own] + [fill(template, question)]
        return before + "\n\n".join(lines)
    shown = [with_options(e, True) for e in own] + [with_options(question, False)]
    return before + "\n\n".join(shown) + (" The answer is (" if answers == "letters" else "")


def items(
    model: Decoder,
    questions: Sequence[Question],
    *,
    answers: str,
    template: str,
    examples: Sequence[Question] = (),
    before: str = "",
) -> list[Item]:
    """Questions as token ids, arguments as in `asked`.

    Raises: Refused for a model without tokenizer, questions without options where options are scored, and
    prompts that the model has no positions for.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise Refused(f"{model.spec.name} has no tokenizer; give a folder that holds one.")
    found = []
    for question in questions:
        text = asked(question, answers, template, examples, before)
        prompt = tuple(token_ids(tokenizer, text))
        options: tuple[tuple[int, ...], ...] = ()
        if answers != "generate":
            if question.answer_index is None:
                raise Refused(
                    f"Question {question.question_id} of {question.src} has no options to score; generate "
                    "its answer (--answers generate)."
                )
            texts = question.options if answers == "options" else LETTERS[: len(question.options)]
            options = tuple(_continuation(tokenizer, text, prompt, given, answers) for given in texts)
        longest = len(prompt) + max(map(len, options), default=0)
        limit = model.spec.max_positions
        if limit is not None and longest > limit:
            raise Refused(
                f"Question {question.question_id} of {question.src} makes a prompt of {longest} tokens; "
                f"{model.spec.name} has positions for {limit}. Give fewer examples, or leave it out."
            )
        found.append(Item(question, prompt, options))
    return found


def _continuation(
    tokenizer: object, text: str, prompt: tuple[int, ...], given: str, answers: str
) -> tuple[int, ...]:
    """Ids that an option adds to its prompt; the option's own where the tokenizer joins them to it."""
    join = "" if answers == "letters" or text.endswith((" ", "\n")) else " "
    whole = tuple(token_ids(tokenizer, text + join + given))
    if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
        return whole[len(prompt) :]
    return tuple(token_ids(tokenizer, join + given, bos=False))


def read_answer(text: str, question: Question) -> str | None:
    """The answer that a text gives, as the published rule finds it; None where it gives none.

    With options the letter after the first "answer is", in brackets or not; of another letter than the
    question has, or without those words, there is none (the published code then draws one at random).
    Without options the last number of the text where the answer is a number, else an accepted text that
    occurs in it.
    """
    if question.options:
        found = ANSWER.search(text)
        letter = None if found is None else found[1]
        return letter if letter is not None and letter in LETTERS[: len(question.options)] else None
    if re.fullmatch(r"-?[\d,.]+", question.answer):
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        return numbers[-1].replace(",", "").rstrip(".") if numbers else None
    lowered = text.lower()
    return next((one for one in question.right if one.lower() in lowered), None)


def is_right(answer: str | None, question: Question) -> bool:
    """Whether an answer that was read is the right one."""
    if answer is None:
        return False
    if question.options:
        return answer == question.answer
    if re.fullmatch(r"-?[\d,.]+", question.answer):
        return _number(answer) == _number(question.answer)
    return answer in question.right


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return float("nan")
