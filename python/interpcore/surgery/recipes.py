"""Merge recipes: a plan as the passthrough YAML with layer ranges that merging tools read, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from interpcore.errors import Refused
from interpcore.model import Plan
from interpcore.runs.artifacts import write_bytes
from interpcore.runs.fields import Fields


def write_recipe(path: str | os.PathLike[str], plan: Plan, model: str, dtype: str = "bfloat16") -> Path:
    """Write a plan as a recipe.

    Args:
        path: the file, .yml.
        plan: of plain blocks of one group on the residual stream.
        model: what the recipe takes its layers from, a folder or hub id.
        dtype: of the merged weights.
    Raises: Refused for a plan without blocks, or with calls that no merged model can make.
    """
    import yaml

    groups = {call.module.rpartition(".")[0] for call in plan.calls}
    if len(groups) != 1 or len(plan.blocks) < len(plan.calls) or plan.streams != {"resid"}:
        raise Refused(
            f"A recipe holds plain blocks one after the other, at least one; the plan is {plan.text}."
        )
    ranges: list[list[int]] = []
    for call in plan.blocks:
        block = int(call.module.rpartition(".")[2])
        if ranges and ranges[-1][1] == block:
            ranges[-1][1] = block + 1
        else:
            ranges.append([block, block + 1])
    slices = [{"sources": [{"model": model, "layer_range": each}]} for each in ranges]
    recipe = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
    file = Path(path)
    write_bytes(file, yaml.safe_dump(recipe, sort_keys=False).encode())
    return file


def read_recipe(path: str | os.PathLike[str], intact: Plan) -> Plan:
    """The plan of a passthrough recipe whose layers all come from one model.

    Args:
        path: the file.
        intact: the model's own plan; its blocks are the recipe's layers.
    Raises: Refused for another kind of file or merge, or layers that the model does not have.
    """
    import yaml

    try:
        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"{path} is no YAML ({first}); give a merge recipe.") from error
    recipe = Fields.of(content, str(path), Refused)
    if recipe.content.get("merge_method") != "passthrough":
        raise Refused(f"{path} merges weights; a plan is a recipe whose merge_method is passthrough.")
    parts, models = [], set()
    for each in recipe.objects("slices"):
        sources = each.objects("sources")
        if len(sources) != 1:
            raise Refused(f"{path}: a slice has {len(sources)} sources; passthrough takes one.")
        models.add(sources[0].text("model", empty=False))
        bounds = sources[0].wholes("layer_range")
        if len(bounds) != 2 or bounds[0] >= bounds[1]:
            raise Refused(f"{path}: a layer_range is [first, one past the last]; got {list(bounds)}.")
        parts.append(f"{bounds[0]}-{bounds[1] - 1}")
    if len(models) != 1:
        raise Refused(f"{path} takes layers from {len(models)} models; a plan is of one.")
    return Plan.parse(", ".join(parts), intact)
