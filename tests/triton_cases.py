"""Every Triton kernel with its arguments, the values that it is compiled with, and its bounds."""

from typing import NamedTuple


class Kernel(NamedTuple):
    """A Triton kernel: its file, and its arguments that are not sizes or strides.

    Args:
        file: of kernels/, which holds it.
        pointers: names, with a dtype where it is not the case's own.
        floats: names of float arguments.
        stages: of loads in flight, as launched.
        capped: its file says how many registers a lane may take.
    """

    file: str
    pointers: dict[str, str | None]
    floats: frozenset[str] = frozenset()
    stages: int = 3
    capped: bool = False


class Case(NamedTuple):
    """A Triton kernel with its compile-time values, and bounds on registers, shared and stack bytes.

    Args:
        elements: values that a lane takes in one turn of the loop over them, where instructions are bounded.
        instructions: bound for each of these on sm_90; then float64 and barriers are refused in the loop.
        stages: of loads in flight, where it is not the kernel's number.
        load: bytes of a lane's loads in that loop.
    """

    kernel: str
    dtype: str
    constants: dict[str, int | bool | str]
    warps: int
    registers: int
    shared: int
    stack: int = 0
    elements: int = 0
    instructions: float = 0.0
    stages: int = 0
    load: int = 16


def same(*names: str) -> dict[str, str | None]:
    """Pointers of the case's own dtype."""
    return dict.fromkeys(names)


KERNELS = {
    "norm_kernel": Kernel(
        "norm_vjp",
        same("g", "normed", "weight", "residual", "out") | {"rstd": "fp32"},
        frozenset({"weight_offset"}),
        1,
    ),
    "gate_kernel": Kernel("gate", same("x", "x2", "factor", "factor2", "out", "out2")),
    "attn_vjp_queries_kernel": Kernel(
        "attn_vjp",
        same("g", "k", "v", "pattern", "factor", "dq") | {"z": "fp32", "span": "i32"},
        frozenset({"scale"}),
        2,
    ),
    "attn_vjp_keys_kernel": Kernel(
        "attn_vjp",
        same("g", "q", "v", "pattern", "factor", "dk", "dv") | {"z": "fp32", "span": "i32"},
        frozenset({"scale"}),
        2,
    ),
    "attn_vjp_few_keys_kernel": Kernel(
        "attn_few_keys",
        same("g", "q", "v", "pattern", "factor", "dk", "dv") | {"z": "fp32"},
        frozenset({"scale"}),
        1,
    ),
    "attn_jvp_kernel": Kernel(
        "attn_jvp",
        same("tk", "tv", "q", "v", "pattern", "factor", "tz") | {"z": "fp32", "span": "i32"},
        frozenset({"scale"}),
        2,
    ),
    "covariance_map_kernel": Kernel("attn_vjp", same("x", "key_value", "out")),
    "column_moments_kernel": Kernel(
        "column_moments",
        same("x", "out")
        | {"mask": "u8", "threshold": "fp32", "counts": "i32", "sums": "fp64"}
        | dict.fromkeys(("centre", "scale"), "fp32"),
        stages=1,
        capped=True,
    ),
    "settle_chunks_kernel": Kernel(
        "_chunks",
        same("x") | {"mask": "u8", "threshold": "fp32", "counts": "i32", "sums": "fp64", "moments": "fp64"},
    ),
    "activation_moments_kernel": Kernel(
        "activation_moments",
        same("x", "up", "out")
        | {"mask": "u8", "threshold": "fp32"}
        | dict.fromkeys(("counts", "out_counts"), "i32")
        | dict.fromkeys(("sums", "out_sums"), "fp64"),
        stages=1,
    ),
    "merge_chunks_kernel": Kernel(
        "_chunks", {"counts": "i32", "moments": "fp64", "count_out": "i64", "out": "fp64"}
    ),
    "centered_kernel": Kernel(
        "comoments", same("x", "out") | {"mask": "u8", "shift": "fp32", "scale": "fp32"}
    ),
    "bin_counts_kernel": Kernel(
        "bin_counts",
        same("x") | {"edge": "fp32", "counts": "i64", "nonfinite": "i64"},
        frozenset({"first", "scale"}),
    ),
    "column_top_kernel": Kernel("column_top", {"x": "fp32", "value": "fp32", "index": "i64", "place": "i64"}),
    "group_sums_kernel": Kernel(
        "group_sums",
        same("x")
        | dict.fromkeys(("order", "start", "place"), "i64")
        | {"shift": "fp32", "total": "fp64", "square": "fp64", "active": "i32", "nonfinite": "u8"}
        | {"largest": "fp32"},
    ),
    "row_summary_kernel": Kernel(
        "row_summary",
        same("r", "top", "bottom")
        | dict.fromkeys(("histogram", "top_index", "bottom_index", "count"), "i64")
        | {"edge": "fp64", "powers": "fp64"},
    ),
    "product_kernel": Kernel("product", dict.fromkeys(("x", "weight", "bias", "out"), "fp32")),
    "edge_products_kernel": Kernel(
        "edge_scores",
        same("difference", "grad")
        | {"prefix": "i32", "unit_first": "i32", "unit_rows": "i32", "partial": "fp32"},
    ),
    "edge_sums_kernel": Kernel(
        "edge_scores",
        {"prefix": "i32", "segment_first": "i32", "ends": "i32"}
        | dict.fromkeys(("partial", "total", "squares"), "fp32"),
    ),
}
ROW = {"TANGENT": False, "CENTER": True, "WEIGHTED": True, "RESIDUAL": True, "SUMMED": False}
# One warp to a row and no barrier: a row of 1,024 in 418 issue slots, where four warps took 1,824.
CASES = [
    Case("norm_kernel", "bf16", ROW | {"BLOCK": 1024}, 1, 168, 0, 0, 32, 14),
    Case("norm_kernel", "fp32", ROW | {"BLOCK": 1024}, 1, 168, 0, 0, 32, 12),
    Case("norm_kernel", "bf16", ROW | {"BLOCK": 4096}, 4, 168, 128),
    Case("norm_kernel", "bf16", ROW | {"BLOCK": 1024, "SUMMED": True}, 1, 180, 0),
    Case("norm_kernel", "fp32", ROW | {"BLOCK": 1024, "TANGENT": True}, 1, 168, 0),
]
CASES += [
    Case("gate_kernel", "fp32", {"SUM": True, "BOTH": False, "BLOCK": 1024}, 4, 64, 0),
    Case("gate_kernel", "bf16", {"SUM": False, "BOTH": True, "BLOCK": 1024}, 4, 64, 0),
]
# Tiles and warps as kernels/attn_vjp.py and kernels/attn_jvp.py choose them for many queries and keys.
ATTENTION = {"FACTOR": True, "SPAN": True, "BP": 16, "BT": 16}
WHOLE, HALVES = {"PARTS": 1}, {"PARTS": 2}
FEW = {"FACTOR": False, "ALONE": True, "BP": 16, "BT": 16}
CASES += [
    Case("attn_vjp_queries_kernel", "fp32", ATTENTION | {"BE": 64}, 4, 128, 24576),
    Case("attn_vjp_queries_kernel", "fp32", ATTENTION | {"BE": 256}, 8, 255, 73728),
    Case("attn_vjp_queries_kernel", "bf16", ATTENTION | {"BP": 64, "BT": 64, "BE": 64}, 8, 255, 65536),
    Case("attn_vjp_queries_kernel", "bf16", ATTENTION | {"BP": 32, "BT": 32, "BE": 128}, 8, 128, 32768),
    Case("attn_vjp_keys_kernel", "fp32", ATTENTION | WHOLE | {"BE": 64}, 4, 216, 24576),
    Case("attn_vjp_keys_kernel", "fp32", ATTENTION | WHOLE | {"BE": 128}, 8, 240, 45056),
    Case("attn_vjp_keys_kernel", "fp32", ATTENTION | HALVES | {"BE": 128}, 8, 255, 45056, stages=1),
    Case("attn_vjp_keys_kernel", "bf16", ATTENTION | WHOLE | {"BT": 64, "BE": 64}, 8, 248, 24576),
    Case("attn_vjp_keys_kernel", "bf16", ATTENTION | WHOLE | {"BT": 32, "BE": 128}, 8, 176, 28672),
    Case("attn_vjp_keys_kernel", "bf16", ATTENTION | HALVES | {"BE": 128}, 8, 168, 28672, stages=1),
    Case("attn_vjp_few_keys_kernel", "bf16", FEW | {"BE": 64}, 1, 168, 8192),
    Case(
        "attn_vjp_few_keys_kernel", "bf16", FEW | {"ALONE": False, "FACTOR": True, "BE": 128}, 2, 255, 20480
    ),
    Case("attn_vjp_few_keys_kernel", "bf16", FEW | {"ALONE": False, "BE": 256}, 4, 255, 40960),
    Case("attn_vjp_few_keys_kernel", "fp32", FEW | {"BE": 64}, 4, 255, 24576),
    Case(
        "attn_vjp_few_keys_kernel", "fp32", FEW | {"ALONE": False, "FACTOR": True, "BE": 128}, 8, 255, 49152
    ),
    Case("attn_jvp_kernel", "fp32", ATTENTION | WHOLE | {"BE": 64}, 4, 160, 24576),
    Case("attn_jvp_kernel", "fp32", ATTENTION | WHOLE | {"BE": 128}, 8, 208, 45056),
    Case("attn_jvp_kernel", "fp32", ATTENTION | HALVES | {"BE": 128}, 8, 176, 73728),
    Case("attn_jvp_kernel", "bf16", ATTENTION | WHOLE | {"BP": 64, "BT": 64, "BE": 64}, 8, 208, 77824),
    Case("attn_jvp_kernel", "bf16", ATTENTION | WHOLE | {"BP": 32, "BT": 32, "BE": 128}, 8, 144, 40960),
    Case("covariance_map_kernel", "fp32", {"BC": 64, "BK": 32, "BN": 64}, 4, 176, 49152),
    Case("covariance_map_kernel", "bf16", {"BC": 64, "BK": 32, "BN": 64}, 4, 104, 24576),
]
# Tiles as kernels/_chunks.py has them. Blocks merged in float64 row by row took 54 instructions a
# value, and 224 with the activation; a GPU that reads bfloat16 at its full rate has issue slots for about 13.
COLUMNS = {"BR": 32, "BN": 64}
PLAIN, LIMIT, MASK, LIMITS = (
    {"K": k, "MASKED": m} | COLUMNS for k, m in ((0, False), (1, False), (1, True), (8, True))
)
# With centred values written a lane has four columns; a GPU that reads and writes two bytes of each
# at its full rate has issue slots for about 24 instructions.
ALONE, CENTERED, KEPT = {"CENTERED": False}, PLAIN | {"CENTERED": True, "AHEAD": 4}, {"MASKED": True}
FUSED = "activation_moments_kernel"
GELU, GATED = ({"ACTIVATION": a, "GATED": g} for a, g in (("gelu_tanh", False), ("silu", True)))
CASES += [
    Case("column_moments_kernel", "bf16", PLAIN | ALONE | {"AHEAD": 4}, 8, 128, 16384, 0, 32, 11),
    Case("column_moments_kernel", "bf16", LIMIT | ALONE | {"AHEAD": 4}, 8, 128, 16384, 0, 32, 14),
    Case("column_moments_kernel", "bf16", MASK | ALONE | {"AHEAD": 4}, 8, 128, 16384, 0, 32, 16),
    Case("column_moments_kernel", "bf16", LIMITS | ALONE | {"AHEAD": 4}, 8, 184, 16384),
    Case("column_moments_kernel", "fp32", LIMIT | ALONE | {"AHEAD": 2}, 8, 128, 16384, 0, 16, 14),
    Case("column_moments_kernel", "bf16", CENTERED, 16, 128, 16384, 0, 16, 17.5, load=8),
    Case("column_moments_kernel", "bf16", CENTERED | KEPT, 16, 128, 16384, 0, 16, 21, load=8),
    Case("column_moments_kernel", "fp32", CENTERED, 16, 128, 16384, 0, 16, 16.5),
    Case("column_moments_kernel", "fp32", CENTERED | KEPT, 16, 128, 16384, 0, 16, 19),
    Case(FUSED, "bf16", GELU | PLAIN, 8, 255, 16384, 0, 16, 40),
    Case(FUSED, "fp32", GELU | PLAIN, 8, 255, 16384, 0, 16, 37),
    Case(FUSED, "bf16", GATED | MASK, 8, 255, 16384, 0, 16, 52),
    Case("settle_chunks_kernel", "bf16", MASK | {"LIMITS": 1}, 4, 168, 1024),
    Case("settle_chunks_kernel", "fp32", MASK | {"LIMITS": 1}, 4, 168, 1024),
    Case("merge_chunks_kernel", "fp64", {"K": 2, "GO_ON": True, "BC": 16, "BN": 16}, 4, 112, 1024),
]
CASES += [
    Case("centered_kernel", dtype, {"MASKED": True, "BR": 8, "BN": 512}, 4, 128, 2048)
    for dtype in ("fp32", "bf16")
]
# Tiles as the kernels of tallies have them.
OCTAVES = {"OCTAVES": True, "SHIFT": 20, "OFFSET": 800, "MOST": 400, "BR": 32, "BN": 64}
CASES += [
    Case("bin_counts_kernel", "bf16", OCTAVES, 4, 80, 16384),
    Case("bin_counts_kernel", "fp32", OCTAVES | {"OCTAVES": False}, 4, 96, 16384),
    Case("column_top_kernel", "fp32", {"K": 32, "BR": 64, "BN": 32}, 4, 168, 16384),
    Case("group_sums_kernel", "bf16", {"COUNTED": True, "LARGEST": True, "BN": 256}, 4, 64, 1024),
    Case(
        "row_summary_kernel",
        "fp32",
        {"POWERS": True, "COUNT": True, "K": 64, "BINS": 256, "BM": 1024},
        4,
        255,
        16384,
    ),
]
# Tiles as kernels/edge_scores.py has them.
EDGES = {"BS": 128, "BD": 64}
CASES += [
    Case("edge_products_kernel", "fp32", EDGES | {"BK": 32}, 8, 168, 65536),
    Case("edge_products_kernel", "bf16", EDGES | {"BK": 64}, 4, 184, 73728),
    Case("edge_products_kernel", "bf16", EDGES | {"BD": 128, "BK": 64}, 8, 184, 98304),
    Case("edge_sums_kernel", "fp32", {"MOMENTS": True, "BLOCK": 512}, 4, 40, 4096),
]
# Tiles as kernels/product.py has them; the weight out by in.
PRODUCT = {"BIASED": True, "BM": 128, "BN": 64, "BK": 32}
CASES += [
    Case("product_kernel", "fp32", PRODUCT | {"SPLIT": split}, 8, registers, shared)
    for split, registers, shared in ((False, 168, 65536), (True, 232, 65536))
]
