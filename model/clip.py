"""The CLIP text tower (Radford et al. 2021, section 2.4): token ids to the context that the UNet attends to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ops import PLAIN, Ops
from pipeline.spec import TextSpec


class ClipText(nn.Module):
    """Parameter names are the checkpoint's, hence the nesting under `text_model`."""

    def __init__(self, spec: TextSpec, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.text_model = _Tower(spec, ops)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Token ids [n, tokens], integers -> context [n, tokens, width], after the final normalisation.

        Where there are layers to leave out, also [n, skips, tokens, width]: the k-th of them without the last k + 1.

        No padding mask: a token sees those before it, and what stands after the end mark is part of the context
        that Stable Diffusion was trained with.
        """
        return self.text_model(ids)


class _Tower(nn.Module):
    def __init__(self, spec: TextSpec, ops: Ops) -> None:
        super().__init__()
        self.ops, self.skips = ops, spec.skips
        self.embeddings = _Embeddings(spec)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(spec, ops) for _ in range(spec.layers))})
        self.final_layer_norm = nn.LayerNorm(spec.width, eps=spec.eps)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        x = self.embeddings(ids)  # [n, tokens, width]
        layers = []
        for layer in self.encoder["layers"].children():
            x = layer(x)
            layers.append(x)
        context = self.ops.layer_norm(x, self.final_layer_norm)
        if not self.skips:
            return (context,)
        skipped = [self.ops.layer_norm(layers[-2 - skip], self.final_layer_norm) for skip in range(self.skips)]
        return context, torch.stack(skipped, dim=1)


class _Embeddings(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.width)
        self.position_embedding = nn.Embedding(spec.tokens, spec.width)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.token_embedding(ids) + self.position_embedding(positions)


class _Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, spec: TextSpec, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.layer_norm1 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.self_attn = _SelfAttention(spec, ops)
        self.layer_norm2 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.mlp = _Mlp(spec, ops)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn(self.ops.layer_norm(x, self.layer_norm1), residual=x)
        return self.mlp(self.ops.layer_norm(x, self.layer_norm2), residual=x)


class _SelfAttention(nn.Module):
    def __init__(self, spec: TextSpec, ops: Ops) -> None:
        super().__init__()
        self.ops, self.heads = ops, spec.heads
        self.q_proj = nn.Linear(spec.width, spec.width)
        self.k_proj = nn.Linear(spec.width, spec.width)
        self.v_proj = nn.Linear(spec.width, spec.width)
        self.out_proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        q, k, v = self.ops.linears(x, (self.q_proj, self.k_proj, self.v_proj))
        return self.ops.linear(self.ops.attention(q, k, v, self.heads, causal=True), self.out_proj, residual)


class _Mlp(nn.Module):
    def __init__(self, spec: TextSpec, ops: Ops) -> None:
        super().__init__()
        self.ops, self.quick = ops, spec.activation == "quick_gelu"
        self.fc1 = nn.Linear(spec.width, spec.hidden)
        self.fc2 = nn.Linear(spec.hidden, spec.width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.ops.linear(x, self.fc1)  # [n, tokens, hidden]
        # OpenAI's towers were trained with the sigmoid approximation of GELU (Hendrycks and Gimpel 2016, section 2).
        x = x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x)
        return self.ops.linear(x, self.fc2, residual)
