"""transformers' module behind each site of a family."""

from __future__ import annotations

READ = ("resid", "attn_in", "z", "mlp_in", "mlp_act")  # a module's input; the others are a module's output


def module_names(
    layers: str, embed: str | None, final_norm: str, logits: str | None = "lm_head", **inside: str | None
) -> dict[str, tuple[str, str]]:
    """`ModelSpec.module_names` from paths of modules.

    Args:
        layers: the list of blocks.
        embed, final_norm, logits: of the sites of these names; None where no module shows the site.
        inside: by site, a path within a block, "" for the block itself; None likewise. The norm that reads
            a branch's copy of the stream gives what the branch reads.
    """
    block = f"{layers}.{{d}}"
    inside |= {f"{branch}_normed": inside.get(f"{branch}_in") for branch in ("attn", "mlp")}
    paths = {site: None if path is None else f"{block}.{path}".rstrip(".") for site, path in inside.items()}
    paths |= {"embed": embed, "resid": block, "block_out": block, "final_norm": final_norm, "logits": logits}
    return {
        site: ("input" if site in READ else "output", path)
        for site, path in paths.items()
        if path is not None
    }
