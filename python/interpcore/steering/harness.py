"""The lm-eval harness on this package's decoder: a model type `interpcore`, under any intervention, plan or
number of recurrence steps.

    python -m interpcore.steering.harness --model interpcore --model_args pretrained=F,intervention=FILE ...

is the harness's own command line with the model type registered. Versions after 0.4.13 find it through the
entry point `lm_eval.models`, so that their own `lm_eval --model interpcore` works as it is; 0.4.13 looks for
none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch

from interpcore.errors import Refused
from interpcore.model import Cache, Plan
from interpcore.model.prompts import pad
from interpcore.steering import files
from interpcore.steering.choice import answer_positions, log_softmax, option_score
from interpcore.steering.interventions import Intervention

NAME = "interpcore"
DEFAULT_LENGTH = 2048
BLOCK = 16  # tokens generated between looks for a stop text


class Requests:
    """What the harness asks of a model, of token ids.

    Args:
        model: the decoder.
        intervention: made in all of it; "last", "onward" and "answer" count from a request's context.
        rows: requests at once.
    """

    def __init__(self, model: Any, intervention: Intervention, rows: int = 16):
        self.model, self.intervention, self.rows = model, intervention, rows
        self.longest = model.spec.max_positions or DEFAULT_LENGTH

    @torch.no_grad()
    def loglikelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one; what is
        longer than the model's positions loses its first tokens.
        """
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        for at in range(0, len(order), self.rows):
            chosen = order[at : at + self.rows]
            cut = [self._cut(*pairs[i]) for i in chosen]
            lengths = torch.tensor(
                [len(text) - len(pairs[i][1]) + 1 for i, text in zip(chosen, cut, strict=True)]
            )
            totals = torch.tensor([len(text) for text in cut])
            ids, mask = pad(cut, self.model.device)
            edits = self.intervention.edits(self.model, lengths, totals)
            read = answer_positions(lengths, totals)
            logits = self.model.forward(ids, mask, edits=edits, logits_at=read).logits
            chances = log_softmax(logits)
            for row, i in enumerate(chosen):
                wanted = pairs[i][1]
                greedy = chances[row, : len(wanted)].argmax(-1).tolist() == wanted
                found[i] = option_score(chances[row], wanted), greedy
        return found

    def _cut(self, context: list[int], continuation: list[int]) -> list[int]:
        """What is run: all but the last token."""
        if not context or not continuation:
            raise Refused("A request of the harness has an empty context or continuation.")
        return (context + continuation)[-(self.longest + 1) :][:-1]

    @torch.no_grad()
    def generate(
        self, contexts: Sequence[list[int]], until: Sequence[str], most: int, temperature: float, seed: int
    ) -> list[str]:
        """Text after each context, up to the first of `until`.

        Args:
            contexts: token ids of each.
            until: texts that end it, which are cut off.
            most: tokens at most.
            temperature: 0 is greedy.
            seed: of the sampler.
        """
        found = [""] * len(contexts)
        order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
        for at in range(0, len(order), self.rows):
            chosen = order[at : at + self.rows]
            texts = [contexts[i][-(self.longest - most) :] for i in chosen]
            for i, text in zip(
                chosen, self._continued(texts, until, most, temperature, seed + at), strict=True
            ):
                found[i] = text
        return found

    def _continued(
        self, texts: list[list[int]], until: Sequence[str], most: int, temperature: float, seed: int
    ) -> Iterable[str]:
        lengths = torch.tensor([len(text) for text in texts])
        edits = self.intervention.edits(self.model, lengths, more=most)
        stops = [self.model.tokenizer.eos_token_id] if self.model.tokenizer.eos_token_id is not None else []
        said: list[list[int]] = [[] for _ in texts]
        kept: Cache | None = None
        # Rows stay as long as one another behind their prompts, so that one cache serves the next block.
        new = torch.zeros(len(texts), 0, dtype=torch.int64)
        while new.shape[1] < most and not all(self._ended(own, until, stops) for own in said):
            ids, mask = pad([t + n for t, n in zip(texts, new.tolist(), strict=True)], self.model.device)
            options: dict[str, Any] = {"temperature": temperature, "seed": seed + new.shape[1]}
            out = self.model.generate(
                ids,
                mask,
                max_new_tokens=min(BLOCK, most - new.shape[1]),
                edits=edits,
                cache=kept,
                stop_tokens=(),
                **(options if temperature else {}),
            )
            kept = out.cache
            new = torch.cat([new, out.tokens.cpu()], 1)
            said = new.tolist()
        return (self._text(own, until, stops) for own in said)

    def _text(self, ids: list[int], until: Sequence[str], stops: Sequence[int]) -> str:
        ids = next((ids[:i] for i, token in enumerate(ids) if token in stops), ids)
        text = str(self.model.tokenizer.decode(ids, skip_special_tokens=True))
        for stop in until:
            text = text.split(stop)[0] if stop else text
        return text

    def _ended(self, ids: list[int], until: Sequence[str], stops: Sequence[int]) -> bool:
        text = self.model.tokenizer.decode(ids, skip_special_tokens=True)
        return any(token in stops for token in ids) or any(stop and stop in text for stop in until)


class _Answers:
    """What the harness asks of a model type; `model_class` joins it to the harness's own base class.

    Args:
        pretrained: a folder or name, or a loaded model.
        intervention: a file, or the edits themselves.
        steps, plan: as in `rearranged`.
        dtype, device, batch_size, revision, max_batch_size: what the harness gives every model type.
    """

    cache_hook: Any

    def __init__(
        self,
        pretrained: Any,
        intervention: str | Intervention | None = None,
        steps: int | None = None,
        plan: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 16,
        revision: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if (device or "").startswith("cuda") and not torch.cuda.is_available():
            # The harness asks for it unasked, and its own models do the same.
            logging.getLogger(__name__).warning("There is no device %s here; running on the CPU.", device)
            device = None
        model = loaded(pretrained, dtype=dtype, device=device or "cpu", revision=revision)
        model = rearranged(model, plan, None if steps is None else int(steps))
        if model.tokenizer is None:
            raise Refused(f"{model.spec.name} has no tokenizer; give a folder that holds one.")
        given = files.load(intervention, model) if isinstance(intervention, str) else intervention
        rows = int(batch_size) if str(batch_size).isdecimal() else 16
        self.requests = Requests(model, given or Intervention(), rows)
        self.model, self.tokenizer = model, model.tokenizer
        self.batch_size, self.max_length = rows, self.requests.longest
        self._device = model.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        first = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if first is None else first)

    @property
    def tokenizer_name(self) -> str:
        """What the harness names its caches by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the harness's own models do: what the tokenizer adds, but no second beginning."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        how = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **how))

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer writes it."""
        how = {"add_generation_prompt": add_generation_prompt}
        how["continue_final_message"] = not add_generation_prompt
        return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **how))

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        found = self.requests.loglikelihoods([(context, after) for _, context, after in requests])
        for (key, _, _), one in zip(requests, found, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, one)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the model's length."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        totals = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            totals.append(sum(score for score, _ in self.requests.loglikelihoods(pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Continuations, requests of one kind of decoding together."""
        from lm_eval.models.utils import normalize_gen_kwargs

        found = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(i)
        for chosen in groups.values():
            how = normalize_gen_kwargs(requests[chosen[0]].args[1], 256)
            temperature = float(how.get("temperature", 0.0)) if how.get("do_sample") else 0.0
            contexts = [self.tok_encode(requests[i].args[0]) for i in chosen]
            most = how["max_gen_toks"]
            if most >= self.max_length:
                raise Refused(
                    f"max_gen_toks is {most}; {self.model.spec.name} has {self.max_length} "
                    "positions: set fewer (steering evaluate --max-gen-toks N)."
                )
            texts = self.requests.generate(contexts, how["until"], most, temperature, 1234)
            for i, text in zip(chosen, texts, strict=True):
                found[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return found


@cache
def model_class() -> type:
    """The harness's model type; it needs lm-eval."""
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise ModuleNotFoundError("This needs lm-eval; pip install 'lm-eval>=0.4.13'.") from error
    return type("InterpcoreLM", (_Answers, TemplateLM), {"__doc__": __doc__, "__module__": __name__})


def loaded(given: Any, dtype: str | None = None, device: str = "cpu", revision: str | None = None) -> Any:
    """A model, or what loads one."""
    import interpcore

    if not isinstance(given, str):
        return given
    how = None if dtype in (None, "auto") else getattr(torch, str(dtype).removeprefix("torch."))
    return interpcore.load(given, dtype=how, device=device, revision=revision)


def rearranged(model: Any, plan: str | None = None, steps: int | None = None) -> Any:
    """A model with another number of recurrence steps, under another plan; None leaves it as it is.

    Raises: Refused for a text that is no plan of the model, and steps of one that does not recur.
    """
    model = model if steps is None else model.with_steps(steps)
    return model if plan is None else model.with_plan(Plan.parse(plan, model.plan))


def register() -> None:
    """Make the model type known to the harness in this process."""
    import lm_eval.models  # noqa: F401  # fills the registry
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=model_class())


@cache
def task_manager(include_path: str | None = None, defaults: bool = True) -> Any:
    """Tasks of a folder of YAMLs, and with `defaults` the harness's own, which take a while to list."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ModuleNotFoundError("This needs lm-eval; pip install 'lm-eval>=0.4.13'.") from error
    return TaskManager(include_path=include_path, include_defaults=defaults)


def manager_of(tasks: Sequence[str], include_path: str | None = None) -> Any:
    """A task manager that knows these tasks.

    Raises: Refused for a task that the harness does not know, with those of a like name.
    """
    if include_path is not None:
        own = task_manager(include_path, defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    whole = task_manager(include_path)
    for task in tasks:
        if task not in whole.all_tasks:
            near = get_close_matches(task, whole.all_tasks, 3)
            hint = f"; did you mean {', '.join(near)}?" if near else "."
            raise Refused(f"lm-eval knows no task {task!r}{hint}")
    return whole


@contextmanager
def local_datasets(folder: Path | None) -> Iterator[None]:
    """Tasks' data sets are read from `folder/owner/name`, or the hub's cache layout below it, where they lie
    there."""
    import datasets

    real = datasets.load_dataset

    def load_dataset(path: str, *args: Any, **how: Any) -> Any:
        assert folder is not None
        cached = sorted((folder / f"datasets--{path.replace('/', '--')}" / "snapshots").glob("*"))
        for place in (folder / path, *cached[-1:]):
            if place.is_dir():
                return real(str(place), *args, **how)
        return real(path, *args, **how)

    if folder is None:
        yield
        return
    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = real


def results_of(results: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """Rows of a task's results, its groups and subtasks too."""
    rows = []
    for name, measures in {**results.get("groups", {}), **results["results"]}.items():
        for key, value in measures.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, int | float) and not metric.endswith("_stderr") and filtered:
                error = measures.get(f"{metric}_stderr,{filtered}")
                row = {"task": name, "metric": metric, "filter": filtered, "value": float(value)}
                row["value_se"] = float(error) if isinstance(error, int | float) else float("nan")
                rows.append(
                    row | {"asked_as": task, "n": results.get("n-samples", {}).get(name, {}).get("effective")}
                )
    return rows


def __getattr__(name: str) -> Any:
    if name == "InterpcoreLM":
        return model_class()
    raise AttributeError(name)


def main() -> None:
    """The harness's own command line, the model type registered."""
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
