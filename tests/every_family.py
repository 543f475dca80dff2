"""transformers' causal language models as tiny random ones, and whether what we offer of each is true."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import interpcore
from interpcore.circuits import Circuit, Graph, Pairs
from interpcore.circuits.patching.faithfulness import evaluate
from interpcore.model import Add, Edit, Scale, Tap

# One size under every name that transformers' configs give it.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_dense_layers"), 1),
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
RECURRENT = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "state_size": 8, "expand": 2}
BASE = SIZES | EXPERTS | LATENT | RECURRENT | {"rotary_dim": 4}
# What to try where transformers refuses or cannot run the sizes so far.
ATTEMPTS: tuple[dict[str, Any], ...] = (
    BASE,
    BASE | {"num_key_value_heads": 4, "head_dim": 4},
    BASE | {"num_key_value_heads": 4},
    {name: value for name, value in BASE.items() if name not in ("head_dim", *LATENT)},
    {name: value for name, value in SIZES.items() if name != "head_dim"} | EXPERTS,
)
TOKENS = torch.randint(3, 60, (2, 14), generator=torch.Generator().manual_seed(5))


@dataclass(frozen=True)
class Tried:
    """What came of a family.

    Args:
        family: transformers' model type.
        path: "hand-written", "adapter", "refused", or "not built" where transformers itself does not make or
            run so small a model.
        sites: what is offered.
        reason: of a refusal.
        wrong: identities that do not hold; empty of a family that is right.
    """

    family: str
    path: str
    sites: tuple[str, ...] = ()
    reason: str = ""
    wrong: tuple[str, ...] = ()


def families() -> list[str]:
    """Every model type that transformers has a causal language model for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(family: str, options: dict[str, Any]) -> Any:
    """A random model with every matrix large enough to show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tf.AutoConfig.for_model(family, **options)
        if getattr(config, "sub_configs", None):
            raise ValueError("it has more than a text model")
        model = tf.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.15)
    return model


def built(family: str) -> tuple[Any, list[torch.Tensor]]:
    """The first attempt that transformers runs, and its logits of each row alone [position, vocabulary].

    Raises: whatever the last one says.
    """
    for options in ATTEMPTS:
        try:
            hf = tiny(family, options)
            with torch.no_grad():
                return hf, [hf(row[None], use_cache=False).logits[0] for row in (TOKENS[0], TOKENS[1, 5:])]
        except Exception as error:  # of any kind: the config fits no model
            last = error
    raise last


def try_family(family: str) -> Tried:
    """Load a family and hold every site that it offers to what the site's name says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            hf, alone = built(family)
        except Exception as error:  # whatever transformers says to so small a config
            return Tried(family, "not built", reason=(str(error).splitlines() or [""])[0][:90])
        try:
            model = interpcore.load(hf)
        except interpcore.errors.Refused as refusal:
            return Tried(family, "refused", reason=str(refusal))
    path = "hand-written" if isinstance(model, interpcore.model.Model) else "adapter"
    sites = tuple(row["site"] for row in model.sites())
    return Tried(family, path, sites, wrong=tuple(_wrong(model, sites, alone)))


def _wrong(model: Any, sites: tuple[str, ...], alone: list[torch.Tensor]) -> list[str]:
    """Names of the identities that fail."""
    found = []
    mask = torch.ones_like(TOKENS)
    mask[1, :5] = 0
    plain = model.forward(TOKENS, mask).logits

    def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())

    if not close(plain[0], alone[0]) or not close(plain[1, 5:], alone[1]):
        found.append("logits of padded rows")
    if {"attn_out", "mlp_out", "resid"} <= set(sites):
        for d in range(4):
            taps = [Tap("attn_out", d), Tap("mlp_out", d), Tap("resid", d), Tap("resid", d + 1)]
            attention, mlp, before, after = (model.forward(TOKENS, taps=taps).taps[tap] for tap in taps)
            if not close(before + attention + mlp, after):
                found.append(f"attn_out + mlp_out at depth {d}")
            none = [Edit(site, d, None, Scale(0)) for site in ("attn_out", "mlp_out")]
            still = model.forward(TOKENS, taps=taps[2:], edits=none).taps
            if not close(still[taps[2]], still[taps[3]]):
                found.append(f"edits of both at depth {d}")
    for branch in ("attn", "mlp"):
        for site in {f"{branch}_normed", f"{branch}_in"} & set(sites):
            found += _read_wrong(model, branch, site, close)
    if not isinstance(model, interpcore.model.Model) and {"attn_in", "mlp_in"} <= set(sites):
        found += _circuits_wrong(model, close)
    if not isinstance(model, interpcore.model.Model) and model.functions:
        found += _activation_wrong(model, close)
    if "mlp_act" in sites and not isinstance(model, interpcore.model.Model):
        written, none = Tap("mlp_out", 2), [Edit("mlp_act", 2, None, Scale(0))]
        value = model.forward(TOKENS, taps=[written], edits=none).taps[written]
        if not close(value + 1, value[:1, :1].expand_as(value) + 1):
            found.append("without neurons an MLP writes its bias alone")
    neurons = {"mlp_act", "mlp_pre", "mlp_gate_pre", "mlp_up"}
    streams = {"resid", "attn_out", "mlp_out", "embed", "attn_normed", "mlp_normed", "attn_in", "mlp_in"}
    for site in (streams | neurons) & set(sites):
        width = model.spec.d_mlp if site in neurons else 32
        edit = Edit(site, None if site == "embed" else 1, 6, Add(torch.linspace(-1, 3, width)), rows=[0])
        edited = model.forward(TOKENS, mask, edits=[edit]).logits
        if not close(edited[1, 5:], plain[1, 5:]) or not close(edited[0, :6], plain[0, :6]):
            found.append(f"an edit of {site} stays in its row and later positions")
        if close(edited[0, 6:], plain[0, 6:]):
            found.append(f"an edit of {site} reaches the logits")
    return found


def _circuits_wrong(model: Any, close: Any) -> list[str]:
    """With every edge kept a run is the clean one, with every edge corrupted the corrupted one."""
    tokens, graph = torch.cat([TOKENS, TOKENS.flip(0).roll(3, 1)]), Graph.of(model)
    answers = torch.tensor([[5], [7]])
    pairs = Pairs("random", *tokens.split(2), torch.tensor([14, 14]), answers, answers + 1)
    ours = evaluate(model, pairs, [Circuit.full(graph), Circuit.empty(graph)])["logit_diff"]
    logits = model.forward(tokens, logits_at="last").logits
    theirs = (logits.gather(1, answers.repeat(2, 1)) - logits.gather(1, answers.repeat(2, 1) + 1)).view(2, 2)
    right = float((ours - theirs).abs().max()) <= 1e-4 * float(logits.abs().max())
    return [] if right else ["circuits of all and of no edges"]


def _activation_wrong(model: Any, close: Any) -> list[str]:
    """A study that activates as the model does changes nothing, and sees what the down projection reads."""
    seen, act = {}, Tap("mlp_act", 2)

    def hook(function: Any, pre: torch.Tensor, depth: int, *up: torch.Tensor) -> torch.Tensor:
        seen[depth] = function(pre) * (up[0] if up else 1)
        return seen[depth]

    plain, studied = (model.forward(TOKENS, taps=[act], activation=a) for a in (None, hook))
    right = close(studied.logits, plain.logits) and close(seen[2], plain.taps[act])
    return [] if right and len(seen) == len(model.layers) else ["a study's activation"]


def _read_wrong(model: Any, branch: str, site: str, close: Any) -> list[str]:
    """What a branch reads decides what it writes, and nothing before it."""
    other = {"attn": "mlp", "mlp": "attn"}[branch]
    own, before, beside = Tap(f"{branch}_out", 2), Tap("resid", 2), Tap(f"{other}_out", 2)
    edit = Edit(site, 2, None, Add(torch.linspace(-1, 3, 32)))
    plain, edited = (model.forward(TOKENS, taps=[own, before, beside], edits=e).taps for e in ([], [edit]))
    found = [] if not close(edited[own], plain[own]) else [f"an edit of {site} changes {branch}_out"]
    if not close(edited[before], plain[before]):
        found.append(f"an edit of {site} leaves the stream before it")
    if branch == "mlp" and not close(edited[beside], plain[beside]):
        found.append(f"an edit of {site} leaves attention")
    return found


def table(rows: list[Tried]) -> str:
    """The page `docs/decoders.md`."""
    counts = {path: sum(row.path == path for row in rows) for path in ("hand-written", "adapter", "refused")}
    lines = [
        "# Decoders, family by family",
        "",
        f"Every causal language model of transformers {tf.__version__} that it runs at a tiny size: "
        f"{counts['hand-written']} families on hand-written blocks, {counts['adapter']} through the adapter, "
        f"{counts['refused']} refused. Of each the logits of a padded batch are held to transformers' on the "
        "row alone, and every site to what its name says: what attention and MLP add is the change of the "
        "stream, also where both are edited; what a branch reads decides what it writes and nothing before "
        "it; without its neurons an MLP writes its bias alone; a study that activates as the model does "
        "changes nothing; a circuit of all edges is the clean prompt, one of none the corrupted one; an edit "
        "stays in its row and at later positions, and reaches the logits. Made by "
        "`python tests/every_family.py`.",
        "",
        "Hand-written blocks offer every site of `model.sites()`, with derivatives; BLOOM's embeddings are "
        "taken behind their norm, as a copy. Latent attention (DeepSeek 2 and 3, MiniCPM 3, GLM-4 MoE lite), "
        "state spaces and hybrids go through the adapter alone. Circuits through it are of whole attentions "
        "and MLPs, with edges where `attn_in` and `mlp_in` are sites; neurons can be read and edited where "
        "`mlp_act` is one, and studied (`summarize`, `correlate`, `explain`) where `mlp_pre` or "
        "`mlp_gate_pre` is.",
        "",
        "| family | path | sites, or the reason of a refusal |",
        "|---|---|---|",
    ]
    for row in rows:
        if row.path != "not built":
            shown = "" if row.path == "hand-written" else ", ".join(row.sites) or row.reason.split(":")[0]
            lines.append(f"| {row.family} | {row.path} | {shown} |")
    missing = ", ".join(row.family for row in rows if row.path == "not built")
    return "\n".join([*lines, "", f"Not tried, because no tiny one was made: {missing}."])


if __name__ == "__main__":
    sys.stdout.write(table([try_family(family) for family in families()]) + "\n")
