"""One conversion between names of activations: ours, transformers', other libraries' and published layer
ids."""

from __future__ import annotations

import re

from interpcore.errors import Refused
from interpcore.model.other_names import OTHERS, names_of, other_address
from interpcore.model.plan import Plan
from interpcore.model.sites import SITES
from interpcore.model.spec import ModelSpec
from interpcore.runs.shown import Rows


def site_address(name: str, n_calls: int, spec: ModelSpec | None = None) -> tuple[str, int | None]:
    """The site and depth that a name means.

    Args:
        name: "resid.3", "embed" (ours), "hidden_states[3]" (transformers), "lre:3" or "lre:emb" (published
            LRE layers: block outputs; the token embedding), "blocks.3.hook_resid_post" (TransformerLens),
            "layers_output[3]" (nnterp), "interp_engine:attn_in.3"; with a spec also a module's path,
            "model.layers[3].mlp.output" (nnsight).
        n_calls: D, the number of block calls; negative depths count from the end.
        spec: of the model, which decides what some names mean: before or after a norm, of gated MLPs.
    Returns: (site, depth) with depth from 0, None for sites without one.
    Raises: ValueError for a name that means nothing, or nothing exact: transformers' last hidden state is
    normed.
    """
    if m := re.fullmatch(r"hidden_states\[(-?\d+)\]", name):
        depth = _in_range(int(m[1]), n_calls + 1, name)
        return ("final_norm", None) if depth == n_calls else ("resid", depth)
    if m := re.fullmatch(r"lre:(-?\d+|emb|ln_f)", name):
        if m[1] in ("emb", "ln_f"):
            return ("embed", None) if m[1] == "emb" else ("final_norm", None)
        return "resid", _in_range(int(m[1]), n_calls, name) + 1
    if m := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", name):
        return "resid", _in_range(int(m[1]), n_calls, name) + 1
    if m := re.fullmatch(r"(\w+)\.(-?\d+)", name):
        if m[1] in SITES and SITES[m[1]].depths != "none":
            return m[1], _in_range(int(m[2]), n_calls + (SITES[m[1]].depths == "calls+1"), name)
    elif name in SITES and SITES[name].depths == "none":
        return name, None
    found = other_address(name, spec)
    if found is None:
        raise Refused(
            f"{name!r} names no activation; examples: resid.3, hidden_states[3], blocks.3.hook_resid_pre, "
            "layers_output[3], lre:3, embed."
        )
    site, depth_found = found
    return site, None if depth_found is None else _in_range(depth_found, n_calls, name)


def site_name(
    site: str, depth: int | None, n_calls: int, convention: str = "interpcore", spec: ModelSpec | None = None
) -> str | None:
    """The name of a site in a convention; None where it has none.

    Args:
        site, depth: as in `Tap`, depth from 0.
        n_calls: D, the number of block calls.
        convention: "interpcore", "transformers" (hidden_states only), "lre", "transformer_lens", "nnterp" or
            "interp_engine".
        spec: as in `site_address`.
    """
    if convention == "interpcore":
        return site if depth is None else f"{site}.{depth}"
    if convention == "transformers":
        if site == "final_norm":
            return f"hidden_states[{n_calls}]"
        return (
            f"hidden_states[{depth}]" if site == "resid" and depth is not None and depth < n_calls else None
        )
    if convention == "lre":
        if site == "resid":
            return f"lre:{depth - 1}" if depth else None
        return {"embed": "lre:emb", "final_norm": "lre:ln_f"}.get(site)
    if convention not in OTHERS:
        raise Refused(
            f"Conventions are interpcore, transformers, lre, {', '.join(OTHERS)}; got {convention!r}."
        )
    if site == "resid" and depth == n_calls:
        return f"blocks.{n_calls - 1}.hook_resid_post" if convention == "transformer_lens" else None
    name = (OTHERS[convention] if spec is None else names_of(convention, spec)).get(site)
    return None if name is None else name.format(d=depth)


def source_site(depth: int | None) -> tuple[str, int | None]:
    """Site and depth of a source depth: None is the token embedding, a number the residual depth."""
    return ("embed", None) if depth is None else ("resid", depth)


def source_name(depth: int | None) -> str:
    """A source depth in tables and files: "embed", or the residual depth's number."""
    return "embed" if depth is None else str(depth)


def source_depth(given: int | str | tuple[str, int, int] | None, plan: Plan) -> int | None:
    """The one reading of a source depth: None for the token embedding, else the residual depth from 0.

    Args:
        given: None, a depth (negative from the end), (group, block, step), or a name that `site_address`
            reads and that means a source: "embed", "resid.3", "lre:emb", "lre:2".
        plan: of the model.
    Raises: ValueError for anything else.
    """
    if given is None:
        return None
    if isinstance(given, str):
        site, depth = site_address(given, plan.n_calls)
        if site not in ("embed", "resid"):
            raise Refused(f"{given!r} is no source depth; a depth, 'embed' or 'resid.3' is.")
        return depth
    if not isinstance(given, tuple) and (
        not isinstance(given, int) or not -(plan.n_calls + 1) <= given <= plan.n_calls
    ):
        raise Refused(
            f"Source depth {given!r} is outside this model: depths 0 to {plan.n_calls} (negative from the "
            "end), or 'embed'."
        )
    return plan.depth(given)


def published_layer(depth: int | None) -> int | str:
    """A source depth as published LRE files name it: "emb", or the block whose output it is."""
    name = (site_name(*source_site(depth), n_calls=0, convention="lre") or "").removeprefix("lre:")
    return name if name == "emb" else int(name)


def site_table(spec: ModelSpec, n_calls: int) -> Rows:
    """A row per site of a model: site, depths, shape with sizes, meaning, transformers' module and other
    libraries' names, where those mean that tensor."""
    others = {convention: names_of(convention, spec) for convention in OTHERS}
    sizes = {
        "d_model": spec.d_model,
        "d_mlp": spec.d_mlp,
        "d_head": spec.d_head,
        "kv_head": spec.n_kv_heads,
        "head": spec.n_heads,
        "vocabulary": spec.vocab_size,
    }
    rows = Rows()
    for name, site in SITES.items():
        if name in spec.absent:
            continue
        axes = [
            f"{axis} {sizes[axis]}" if axis in sizes else axis for axis in site.shape.strip("[]").split(", ")
        ]
        side, module = spec.module_names.get(name, ("", ""))
        rows.append(
            {
                "site": name,
                "depths": {"none": "", "calls": f"0..{n_calls - 1}", "calls+1": f"0..{n_calls}"}[site.depths],
                "shape": f"[{', '.join(axes)}]",
                "meaning": site.meaning,
                "transformers": f"{side} of {module}" if module else "",
                **{convention: names.get(name, "") for convention, names in others.items()},
            }
        )
    return rows


def _in_range(index: int, count: int, name: str) -> int:
    if not -count <= index < count:
        raise Refused(f"{name!r} is outside this model, which has {count} of these.")
    return index % count
