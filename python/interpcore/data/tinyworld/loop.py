"""A depth-recurrent model of the world, to train: Huginn's architecture and its checkpoints' names, small.

Training draws the number of steps and the initial state anew for every batch (Geiping et al. 2025, arXiv
2502.05171), so that any number of steps from any seed works afterwards.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from interpcore.model.layout import read_layout
from interpcore.model.state import CUT, DrawnState

STD = math.sqrt(2 / 5)  # of an initial state's entries
STEPS = (1, 2, 3, 4, 5)  # drawn for a batch
BACKPROP = 2  # the last steps alone pass gradients on


class LoopConfig(PreTrainedConfig):
    """Sizes, by the names of `huginn_raven` configs."""

    model_type = "huginn_raven"

    def __init__(
        self,
        n_embd: int = 96,
        n_heads: int = 4,
        intermediate_size: int = 256,
        n_layers_in_prelude: int = 1,
        n_layers_in_recurrent_block: int = 2,
        n_layers_in_coda: int = 1,
        mean_recurrence: int = 4,
        vocab_size: int = 2304,
        block_size: int = 256,
        rope_base: float = 10_000.0,
        norm_eps: float = 1e-6,
        **others: Any,
    ):
        self.n_embd, self.n_heads, self.intermediate_size = n_embd, n_heads, intermediate_size
        self.n_layers_in_prelude, self.n_layers_in_coda = n_layers_in_prelude, n_layers_in_coda
        self.n_layers_in_recurrent_block, self.mean_recurrence = n_layers_in_recurrent_block, mean_recurrence
        self.vocab_size, self.block_size = vocab_size, block_size
        self.rope_base, self.norm_eps = rope_base, norm_eps
        super().__init__(**({"tie_word_embeddings": True} | others))


class Attention(nn.Module):
    """Causal attention with rotary positions of neighbouring pairs, and biases of queries and keys."""

    def __init__(self, config: LoopConfig):
        super().__init__()
        d, self.heads = config.n_embd, config.n_heads
        self.Wqkv = nn.Linear(d, 3 * d, bias=False)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, d // self.heads))
        self.proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """Output [batch, position, d_model] of x, given cosines and sines [position, pair, 2]."""
        q, k, v = self.Wqkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (_turned(t + bias, turn) for t, bias in ((q, self.qk_bias[0]), (k, self.qk_bias[1])))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        z = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(z.transpose(1, 2).flatten(-2))


class GatedMLP(nn.Module):
    """down(silu(gate) * up), gate and up in one layer."""

    def __init__(self, config: LoopConfig):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 2 * config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Output [batch, position, d_model] of x."""
        gate, up = self.fc(x).chunk(2, -1)
        return self.proj(functional.silu(gate) * up)


class SandwichBlock(nn.Module):
    """Both branches, each with a norm before it and one of the stream after it."""

    def __init__(self, config: LoopConfig):
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (
            nn.RMSNorm(config.n_embd, eps=config.norm_eps) for _ in range(4)
        )
        self.attn, self.mlp = Attention(config), GatedMLP(config)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """The stream [batch, position, d_model] after the block."""
        x = self.norm_2(self.attn(self.norm_1(x), turn) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class Body(nn.Module):
    """Everything but the unembedding.

    Args:
        steps: recurrent steps of the next forward.
        seed: of the initial states that are drawn in training; in evaluation they are those of seed 0 that
            `interpcore.load` gives the model.
    """

    def __init__(self, config: LoopConfig):
        super().__init__()
        self.config, self.steps, self.seed = config, config.mean_recurrence, 0
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.prelude, self.core_block, self.coda = (
            nn.ModuleList(SandwichBlock(config) for _ in range(count))
            for count in (
                config.n_layers_in_prelude,
                config.n_layers_in_recurrent_block,
                config.n_layers_in_coda,
            )
        )
        self.adapter = nn.Linear(2 * config.n_embd, config.n_embd, bias=False)
        self.ln_f = nn.RMSNorm(config.n_embd, eps=config.norm_eps)

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        """The final norm's output for ids [batch, position], padded on the right."""
        turn = _turns(self.config, input_ids.shape[1])
        x = self.wte(input_ids) * self.config.n_embd**0.5
        for block in self.prelude:
            x = block(x, turn)
        read, x = x, self._state(x)
        learning = torch.is_grad_enabled()
        for left in range(self.steps, 0, -1):
            with torch.set_grad_enabled(learning and left <= BACKPROP):
                x = self.adapter(torch.cat([x, read], -1))
                for block in self.core_block:
                    x = block(x, turn)
        x = self.ln_f(x)
        for block in self.coda:
            x = block(x, turn)
        return BaseModelOutput(last_hidden_state=self.ln_f(x))

    def _state(self, like: Tensor) -> Tensor:
        if not self.training:
            layout = read_layout((like.shape[0], like.shape[1]), None, None, like.device)
            return DrawnState(0, STD)(like, layout)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.empty(like.shape)
        return nn.init.trunc_normal_(drawn, 0.0, STD, -CUT * STD, CUT * STD, generator=generator)


class LoopForCausalLM(PreTrainedModel):
    """The body and its tied unembedding."""

    config_class = LoopConfig
    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012  # as transformers has it

    def __init__(self, config: LoopConfig):
        super().__init__(config)
        self.transformer = Body(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Normal with variance 2 / (5 d), less where a branch ends, as Huginn was (Takase et al. 2023)."""
        config, std = self.config, (2 / (5 * self.config.n_embd)) ** 0.5
        calls = config.n_layers_in_prelude + config.n_layers_in_coda
        calls += config.n_layers_in_recurrent_block * config.mean_recurrence
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, std)
        if isinstance(module, Attention | GatedMLP):
            nn.init.normal_(module.proj.weight, 0.0, std / math.sqrt(2 * calls))

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.transformer.wte

    def get_output_embeddings(self) -> nn.Linear:
        """The unembedding, which is the token embedding."""
        return self.lm_head

    def draw(self, key: str) -> None:
        """Draw the steps and the initial state of the next forward; they depend on the key alone."""
        source = random.Random(key)
        self.transformer.steps, self.transformer.seed = source.choice(STEPS), source.getrandbits(48)

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        """Logits [batch, position, vocabulary] of ids [batch, position], padded on the right."""
        return CausalLMOutput(logits=self.lm_head(self.transformer(input_ids).last_hidden_state))


def _turns(config: LoopConfig, length: int) -> Tensor:
    """Cosines and sines [position, pair, 2]."""
    size = config.n_embd // config.n_heads
    rates = 1.0 / config.rope_base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return torch.stack((angles.cos(), angles.sin()), -1)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """x [batch, position, head, d_head] with its neighbouring pairs turned."""
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = (t[:, None] for t in turn.unbind(-1))
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
