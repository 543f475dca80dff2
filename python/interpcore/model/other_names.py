"""What other libraries call the sites: TransformerLens, nnterp (over nnsight), interp-engine, and nnsight by
the paths of modules.

A name stands beside a site only where it means that tensor; in some families it means another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from interpcore.errors import Refused
from interpcore.model.spec import ModelSpec

Names = dict[str, dict[str, str]]  # by library, then by site

# {d} is the block. interp-engine's names carry a prefix, as some are sites here with another meaning: its
# attn_in is behind the norm.
OTHERS: Names = {
    "transformer_lens": {
        "embed": "hook_embed",
        "resid": "blocks.{d}.hook_resid_pre",
        "attn_in": "blocks.{d}.hook_attn_in",
        "attn_normed": "blocks.{d}.attn.hook_in",
        "q": "blocks.{d}.attn.hook_q",
        "k": "blocks.{d}.attn.hook_k",
        "v": "blocks.{d}.attn.hook_v",
        "scores": "blocks.{d}.attn.hook_attn_scores",
        "pattern": "blocks.{d}.attn.hook_pattern",
        "z": "blocks.{d}.attn.hook_z",
        "head_out": "blocks.{d}.attn.hook_result",
        "attn_out": "blocks.{d}.hook_attn_out",
        "resid_mid": "blocks.{d}.hook_resid_mid",
        "mlp_in": "blocks.{d}.hook_mlp_in",
        "mlp_normed": "blocks.{d}.mlp.hook_in",
        "mlp_pre": "blocks.{d}.mlp.hook_pre",
        "mlp_gate_pre": "blocks.{d}.mlp.hook_pre",
        "mlp_up": "blocks.{d}.mlp.hook_pre_linear",
        "mlp_act": "blocks.{d}.mlp.hook_post",
        "mlp_out": "blocks.{d}.hook_mlp_out",
        "final_norm": "ln_final.hook_out",
        "logits": "unembed.hook_out",
    },
    "nnterp": {
        "embed": "token_embeddings",
        "resid": "layers_input[{d}]",
        "attn_normed": "attentions_input[{d}]",
        "pattern": "attention_probabilities[{d}]",
        "attn_out": "attentions_output[{d}]",
        "mlp_normed": "mlps_input[{d}]",
        "mlp_out": "mlps_output[{d}]",
        "block_out": "layers_output[{d}]",
        "logits": "logits",
    },
    "interp_engine": {
        "embed": "interp_engine:embeddings",
        "resid": "interp_engine:resid_pre.{d}",
        "attn_normed": "interp_engine:attn_in.{d}",
        "q": "interp_engine:q_norm_out.{d}",
        "k": "interp_engine:k_norm_out.{d}",
        "v": "interp_engine:value.{d}",
        "scores": "interp_engine:attn_scores.{d}",
        "pattern": "interp_engine:attn_probs.{d}",
        "z": "interp_engine:z.{d}",
        "attn_out": "interp_engine:attn_out.{d}",
        "resid_mid": "interp_engine:resid_mid.{d}",
        "mlp_normed": "interp_engine:mlp_in.{d}",
        "mlp_pre": "interp_engine:mlp_pre.{d}",
        "mlp_gate_pre": "interp_engine:mlp_pre.{d}",
        "mlp_up": "interp_engine:mlp_pre_linear.{d}",
        "mlp_act": "interp_engine:mlp_act.{d}",
        "mlp_out": "interp_engine:mlp_out.{d}",
        "block_out": "interp_engine:resid_post.{d}",
        "final_norm": "interp_engine:final_norm",
        "logits": "interp_engine:lm_head",
    },
}
# Names of the same sites in families with norms there.
AFTER_NORM: Names = {
    "transformer_lens": {s: f"blocks.{{d}}.attn.hook_{s}_normed" for s in "qk"},
    "nnterp": {},
    "interp_engine": {s: f"interp_engine:{s}_post.{{d}}" for s in ("attn_out", "mlp_out")},
}
EVERY = (OTHERS, AFTER_NORM)


def names_of(convention: str, spec: ModelSpec) -> dict[str, str]:
    """A library's names for the sites of a model, with {d} for the block; sites for which it has none are
    left out."""
    # Through the adapter some sites are a module's output with a factor, or a part of it.
    modules = {site: at for site, at in spec.module_names.items() if at[0] in ("input", "output")}
    normed = [s for s in ("q", "k", "attn_out", "mlp_out") if "norm" in modules.get(s, ("", ""))[1]]
    names = OTHERS[convention] | {s: n for s, n in AFTER_NORM[convention].items() if s in normed}
    without = set(spec.absent)
    if convention == "transformer_lens":
        # Its hook is what enters the first block, and its last one what the unembedding itself gives.
        without |= {"embed"} if spec.embed_scale != 1 else set()
        without |= {"logits"} - set(modules)
    else:
        without |= {"embed", "attn_out", "mlp_out"} - set(modules)
        without |= set(normed) & {"attn_out", "mlp_out"} if convention == "nnterp" else set()
    if convention == "interp_engine":
        without |= ({"q", "k"} - set(normed)) | ({"logits"} - set(modules))
    return {site: name for site, name in names.items() if site not in without}


def other_address(name: str, spec: ModelSpec | None) -> tuple[str, int | None] | None:
    """The site and depth that another library's name means in a model (None: in most); None for no such name.

    Raises: Refused for a name that means another tensor in this model.
    """
    meant = EVERY if spec is None else ({convention: names_of(convention, spec) for convention in OTHERS},)
    found = next(_matching(name, meant), None)
    if found is None and spec is not None:
        found = _module_address(name, spec)
    if found is not None or spec is None:
        return found
    for site, _ in _matching(name, EVERY):
        why = spec.absent.get(site, "it means a tensor that is no site here.")
        raise Refused(f"In {spec.name} ({spec.family}) {name!r} is not {site!r}: {why}")
    return None


def _matching(name: str, tables: Sequence[Names]) -> Iterator[tuple[str, int | None]]:
    for convention, sites in (pair for table in tables for pair in table.items()):
        for given in (name, f"interp_engine:{name}") if convention == "interp_engine" else (name,):
            for site, pattern in sites.items():
                if m := re.fullmatch(re.escape(pattern).replace(r"\{d\}", r"(\d+)"), given):
                    yield site, int(m[1]) if m.groups() else None


def _module_address(name: str, spec: ModelSpec) -> tuple[str, int | None] | None:
    """Of nnsight's `model.layers[3].mlp.output`, by the modules behind the sites."""
    m = re.fullmatch(r"(.+)\.(input|output)(\[0\])?", name)
    if m is None:
        return None
    path = re.sub(r"\[(\d+)\]", r".\1", m[1])
    for site, (side, pattern) in spec.module_names.items():
        found = re.fullmatch(re.escape(pattern).replace(r"\{d\}", r"(\d+)"), path)
        if found and side == m[2]:
            return site, int(found[1]) if found.groups() else None
    return None
