"""Makes the reduced parity files beside this script; README.md says what each key means.

    python tests/data/make_parity.py [--out FOLDER]

The neuron and circuit files are cut from the full peer numbers in the shared folder ($INTERPCORE_SHARED, else
../shared beside the repository root). The LRE file is computed here, in the plainest way there is.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

LRE_SEED = 20231123
LRE_LAYERS = ("emb", "0", "1", "2")
# Token ids, and the position of the subject's last token: early, in the middle, late, and the last token.
LRE_EXAMPLES = (
    ([0, 17, 5, 23, 44, 9, 31, 2], 2),
    ([0, 8, 8, 41, 12, 36, 19, 27, 3, 11, 46], 5),
    ([0, 29, 14, 6, 38], 3),
    ([0, 33, 21, 7, 40, 15], 5),
)


def lre_config() -> transformers.GPT2Config:
    """A GPT-2 small enough to store: 3 blocks, width 16, 4 heads, 48 tokens."""
    return transformers.GPT2Config(
        n_layer=3, n_embd=16, n_head=4, n_positions=16, vocab_size=48, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip


def lre_weights(seed: int) -> dict[str, np.ndarray]:
    """Random weights, none zero; multiples of 1/64, which every dtype holds exactly and which compress."""
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = {}
    for name, tensor in transformers.GPT2LMHeadModel(lre_config()).state_dict().items():
        if name == "lm_head.weight":  # tied to the token embedding
            continue
        is_norm_scale = ".ln_" in name and name.endswith("weight")
        spread = 0.1 if is_norm_scale or name.endswith("bias") else 0.35
        values = rng.standard_normal(tuple(tensor.shape)) * spread + is_norm_scale
        steps = np.rint(values * 64)
        weights[name] = (np.where(steps == 0, 1, steps) / 64).astype(np.float32)
    return weights


def model_of(config: transformers.GPT2Config, weights: dict[str, np.ndarray]) -> transformers.GPT2LMHeadModel:
    """The float64 transformers model with these weights."""
    model = transformers.GPT2LMHeadModel(config).double().eval().requires_grad_(False)
    state = {name: torch.from_numpy(np.array(values)).double() for name, values in weights.items()}
    unset = model.load_state_dict(state, strict=False)
    assert unset.unexpected_keys == [] and set(unset.missing_keys) <= {"lm_head.weight"}
    return model


def lre_operator(
    model: transformers.GPT2LMHeadModel, tokens: list[int], position: int, layer: str
) -> dict[str, np.ndarray]:
    """h, z, W = dz/dh and b = z - W h of one prompt, by whole-prompt evaluation without a cache.

    Args:
        model: the model, in the dtype to compute in.
        tokens: token ids of the prompt.
        position: of the subject's last token.
        layer: "emb" (the token embedding's output) or a block number (that block's output).

    Returns:
        h [d], z [d], W [d, d], b [d], logits [V]; z is the last block's output at the last position, before
        the final norm.
    """
    blocks = model.transformer.h
    source = model.transformer.wte if layer == "emb" else blocks[int(layer)]
    seen: dict[str, torch.Tensor] = {}

    def evaluate(vector: torch.Tensor | None) -> torch.Tensor:
        def overwrite(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            seen["h"] = hidden[0, position]
            if vector is None:
                return None
            hidden = hidden.clone()
            hidden[0, position] = vector
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        def read(module, inputs, output):
            seen["z"] = (output[0] if isinstance(output, tuple) else output)[0, -1]

        hooks = [source.register_forward_hook(overwrite), blocks[-1].register_forward_hook(read)]
        try:
            seen["logits"] = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        finally:
            for hook in hooks:
                hook.remove()
        return seen["z"]

    z = evaluate(None)
    h, logits = seen["h"], seen["logits"]
    W = torch.autograd.functional.jacobian(evaluate, h)
    result = {"h": h, "z": z, "W": W, "b": z - W @ h, "logits": logits}
    return {name: value.detach().numpy().copy() for name, value in result.items()}


def lre_arrays() -> dict[str, np.ndarray]:
    """Content of parity_lre.npz."""
    weights = lre_weights(LRE_SEED)
    model = model_of(lre_config(), weights)
    arrays = {f"model/{name}": values for name, values in weights.items()}
    arrays["config_json"] = np.array(lre_config().to_json_string())
    for number, (tokens, position) in enumerate(LRE_EXAMPLES):
        arrays[f"example/{number}/tokens"] = np.array(tokens)
        arrays[f"example/{number}/position"] = np.array(position)
        found = [lre_operator(model, tokens, position, layer) for layer in LRE_LAYERS]
        arrays |= {f"example/{number}/{name}": found[0][name] for name in ("z", "logits")}
        arrays |= {f"example/{number}/{name}": np.stack([f[name] for f in found]) for name in ("h", "W", "b")}
    return arrays


MOMENT_KEYS = ("mean", "var", "skew", "kurt", "hist")
HARD_COLUMNS = slice(1, 5)
WEIGHT_LAYER = 1
WEIGHT_NEURONS = np.arange(0, 128, 5)
LOGIT_NEURONS = 8
# (layer, neuron) in either model; the first of A is the column that the peer's fp16 sums overflow on.
COLUMNS_A = np.array([(0, 5), (0, 1), (0, 64), (0, 127), (1, 0), (1, 33), (1, 77), (1, 126)])
COLUMNS_B = np.array([(0, 0), (0, 5), (0, 40), (0, 99), (1, 2), (1, 50), (1, 81), (1, 120)])


def neuron_arrays(shared: Path) -> dict[str, np.ndarray]:
    """Content of parity_neurons.npz."""
    with np.load(shared / "parity" / "neurons" / "peer.npz") as peer:
        arrays = {"moments/edges": peer["moments/out/edges"], "moments/x": peer["moments/in/x"][HARD_COLUMNS]}
        arrays |= {f"moments/{name}": peer[f"moments/out/{name}"][HARD_COLUMNS] for name in MOMENT_KEYS}
        return arrays | _weight_arrays(peer) | _correlation_arrays(peer)


def _weight_arrays(peer: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    chosen = WEIGHT_NEURONS
    block = f"weights/in/a/blocks.{WEIGHT_LAYER}.mlp"
    arrays = {
        "weights/neurons": chosen,
        "weights/W_in": peer[f"{block}.W_in"][:, chosen],
        "weights/b_in": peer[f"{block}.b_in"][chosen],
        "weights/W_out": peer[f"{block}.W_out"][chosen],
        "weights/W_U": peer["weights/in/a/unembed.W_U"],
        "weights/U_out": peer[f"weights/out/vocab_comp/{WEIGHT_LAYER}/U_out"][chosen[:LOGIT_NEURONS]],
    }
    columns = {
        "w_in_norm": "input_weight_norm",
        "input_bias": "input_bias",
        "w_out_norm": "output_weight_norm",
    }
    columns |= {name: name for name in ("in_out_sim", "vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt")}
    for name, theirs in columns.items():
        per_layer = peer[f"weights/out/{theirs}"].reshape(2, 128)
        arrays[f"weights/{name}"] = per_layer[WEIGHT_LAYER, chosen]
    for name in ("in_in", "in_out", "out_out"):
        cosines = peer[f"weights/out/neuron_comp/{WEIGHT_LAYER}/{name}"][:, WEIGHT_LAYER]
        arrays[f"weights/{name}"] = cosines[np.ix_(chosen, chosen)]
    return arrays


def _correlation_arrays(peer: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    def columns(name: str, chosen: np.ndarray) -> np.ndarray:
        return peer[f"correlation/in/{name}"][chosen[:, 0], chosen[:, 1]]

    def pairs(name: str) -> np.ndarray:
        matrix = peer[f"correlation/out/{name}"]
        return matrix[COLUMNS_A[:, :1], COLUMNS_A[:, 1:], COLUMNS_B[:, 0], COLUMNS_B[:, 1]]

    arrays = {
        "correlation/columns_a": COLUMNS_A,
        "correlation/columns_b": COLUMNS_B,
        "correlation/tokens": peer["correlation/in/tokens"].reshape(-1),
        "correlation/a": columns("post_a", COLUMNS_A),
        "correlation/b": columns("post_b", COLUMNS_B),
        "correlation/overflow_column": columns("overflow_a", COLUMNS_A[:1])[0],
        "correlation/peer_overflow": pairs("overflow_corr")[0],
        "correlation/peer_overflow_sumsq": peer["correlation/out/overflow_sumsq"][tuple(COLUMNS_A[0])],
    }
    both = np.concatenate([arrays["correlation/overflow_column"][None], arrays["correlation/b"]])
    arrays["correlation/overflow_true"] = np.corrcoef(both.astype(np.float64))[0, 1:]
    outputs = {
        "pearson": "StreamingPearsonComputer",
        "cosine": "StreamingCosineSimComputer",
        "jaccard": "StreamingJaccardComputer",
        "pearson_no_pad": "loop_ref_none",
        "pearson_no_pad_no_newline": "loop_fast_none",
    }
    return arrays | {f"correlation/{name}": pairs(theirs) for name, theirs in outputs.items()}


SCORE_KEYS = (
    "edge/EAP/ld_sum/patching",
    "edge/EAP-IG-inputs/ld_sum/patching",
    "edge/clean-corrupted/ld_sum/patching",
    "edge/EAP-IG-activations/ld_sum/patching",
    "edge/EAP-IG-inputs/ld_mean/patching",
    "edge/EAP-IG-inputs/pd_mean/patching",
    "edge/EAP-IG-inputs/kl_mean/patching",
    "edge/information-flow-routes/-/-",
    "edge/EAP/ld_mean/zero",
    "edge/EAP/ld_mean/mean-positional",
    "edge/exact-fresh/ld_each/patching",
    "edge/exact/ld_each/zero",
    "edge/exact/ld_each/mean-positional",
    "node/EAP/ld_mean/patching",
    "node/EAP-IG-inputs/ld_mean/patching",
)
CIRCUITS = {
    "topn-22": "edge/EAP/ld_mean/patching|topn|22|abs",
    "greedy-22": "edge/EAP/ld_mean/patching|greedy|22|abs",
    "random-0.7": "random|0.7",
}
MANIFEST_KEYS = ("src_nodes", "dst_nodes", "ig_steps", "bos", "pad", "metrics", "upstream_quirks", "versions")


def circuit_arrays(shared: Path) -> dict[str, np.ndarray]:
    """Content of parity_circuits.npz."""
    folder = shared / "parity" / "circuits" / "gpt2"
    weights = load_file(folder / "hf" / "model.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest = {name: manifest[name] for name in MANIFEST_KEYS} | {"batch": manifest["config"]["batch"]}
    arrays = {f"model/{name}": values for name, values in weights.items()}
    arrays["config_json"] = np.array((folder / "hf" / "config.json").read_text())
    arrays["manifest_json"] = np.array(json.dumps(manifest))
    with np.load(folder / "inputs.npz") as inputs:
        arrays |= {f"input/{name}": inputs[name] for name in inputs.files}
    with np.load(folder / "graph.npz") as graph:
        arrays["real_edge_mask"] = graph["real_edge_mask"]
    with np.load(folder / "scores.npz") as scores:
        arrays |= {f"score/{name}": scores[name] for name in SCORE_KEYS}
    with np.load(folder / "circuits.npz") as circuits:
        for side in ("clean", "corrupted"):
            arrays[f"baseline/{side}"] = circuits[f"baseline|{side}|logit_diff"]
        for name, theirs in CIRCUITS.items():
            for state in ("raw", "pruned"):
                arrays[f"circuit/{name}/{state}"] = circuits[f"{theirs}|{state}|edges"]
            for way in ("patching", "zero", "mean-positional"):
                key = f"{theirs}|eval|{way}|logit_diff"
                if key in circuits.files:
                    arrays[f"circuit/{name}/{way}"] = circuits[key]
    return arrays


HUGINN_CONFIG = {
    "model_type": "huginn_raven", "n_embd": 16, "n_heads": 2, "intermediate_size": 12, "vocab_size": 41,
    "n_layers_in_prelude": 2, "n_layers_in_recurrent_block": 2, "n_layers_in_coda": 1, "mean_recurrence": 3,
    "block_size": 32, "rope_base": 5000, "norm_eps": 1e-6, "tie_embeddings": True, "qk_bias": True,
}  # fmt: skip
HUGINN_DEPTHS = (0, 2, 5, 7, 8)


def huginn_arrays() -> dict[str, np.ndarray]:
    """Content of parity_huginn.npz, by the definition in `tests/huginn_case.py`."""
    sys.path.insert(0, str(HERE.parent))
    from huginn_case import plain_forward, weights_of

    weights = weights_of(HUGINN_CONFIG, seed=20250725)
    rng = np.random.Generator(np.random.PCG64(20250725))
    ids = rng.integers(0, HUGINN_CONFIG["vocab_size"], (2, 7))
    state, vector = (np.round(rng.normal(size=shape) * 64) / 64 for shape in ((2, 7, 16), 16))
    arrays = {"config_json": np.array(json.dumps(HUGINN_CONFIG))}
    arrays |= {"ids": ids, "state": state, "vector": vector}
    arrays |= {f"model/{name}": weight.numpy() for name, weight in weights.items()}
    given = weights, HUGINN_CONFIG, torch.from_numpy(ids), torch.from_numpy(state), 3
    outputs, logits = plain_forward(*given)
    arrays |= {"block_outputs": outputs.float().numpy(), "logits": logits.float().numpy()}
    for depth in HUGINN_DEPTHS:
        _, logits = plain_forward(*given, {depth: torch.from_numpy(vector)})
        arrays[f"logits_add_at/{depth}"] = logits.float().numpy()
    return arrays


def main() -> None:
    """Writes the four files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args().out
    shared = Path(os.environ.get("INTERPCORE_SHARED", REPOSITORY.parent / "shared"))
    np.savez_compressed(out / "parity_lre.npz", **lre_arrays())
    np.savez_compressed(out / "parity_neurons.npz", **neuron_arrays(shared))
    np.savez_compressed(out / "parity_circuits.npz", **circuit_arrays(shared))
    np.savez_compressed(out / "parity_huginn.npz", **huginn_arrays())


if __name__ == "__main__":
    main()
