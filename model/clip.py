"""CLIP's towers (Radford et al. 2021, 2.4): token ids to what the UNet attends to, a picture to its embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ops import PLAIN, Ops
from pipeline.networks import TextSpec, VisionSpec


class ClipText(nn.Module):
    """Parameter names are the checkpoint's, hence the nesting under `text_model`."""

    def __init__(self, spec: TextSpec, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.ops, self.end = ops, spec.end
        self.text_model = _Tower(spec, ops)
        if spec.projection:
            self.text_projection = nn.Linear(spec.width, spec.projection, bias=False)

    def pooled(self, ids: Tensor, normalised: Tensor) -> Tensor:
        """Return the whole text's embedding, what stands at its end: [n, tokens, width] -> [n, projection]."""
        # Of several that are highest, or the end mark, the first counts: the others are padding.
        found = ids if self.end is None else ids == self.end
        at = found.to(torch.int32).argmax(dim=1)
        return self.ops.linear(normalised[torch.arange(ids.shape[0], device=ids.device), at], self.text_projection)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Token ids [n, tokens], integers -> context [n, tokens, width], after the final normalisation.

        Where there are layers to leave out, also [n, skips, tokens, width]: the k-th of them without the last k + 1.

        No padding mask: a token sees those before it, and what stands after the end mark is part of the context
        that Stable Diffusion was trained with.
        """
        return self.text_model(ids)


class TwoTexts(nn.Module):
    """SDXL's two text towers as one network. The second one's parameters are below its folder's name."""

    def __init__(self, first: TextSpec, second: TextSpec, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.skips = min(first.skips, second.skips)
        self.text_model = _Tower(first, ops)
        self.text_encoder_2 = ClipText(second, ops)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Token ids [n, 2, tokens], each tower's -> context [n, tokens, both widths], and pooled [n, projection].

        Where there are layers to leave out, between them [n, skips, tokens, both widths], as ClipText has it.
        """
        second = self.text_encoder_2
        states = self.text_model.states(ids[:, 0]), second.text_model.states(ids[:, 1])
        contexts = [torch.cat([layers[-2 - skip] for layers in states], dim=2) for skip in range(1 + self.skips)]
        normalised = second.ops.layer_norm(states[1][-1], second.text_model.final_layer_norm)
        skipped = [torch.stack(contexts[1:], dim=1)] if self.skips else []
        return contexts[0], *skipped, second.pooled(ids[:, 1], normalised)


class _Tower(nn.Module):
    def __init__(self, spec: TextSpec, ops: Ops) -> None:
        super().__init__()
        self.ops, self.skips = ops, spec.skips
        self.embeddings = _Embeddings(spec)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(_Layer(spec, ops, causal=True) for _ in range(spec.layers))}
        )
        self.final_layer_norm = nn.LayerNorm(spec.width, eps=spec.eps)

    def states(self, ids: Tensor) -> list[Tensor]:
        """Return what each layer gives, [n, tokens, width], not normalised."""
        x = self.embeddings(ids)
        layers = []
        for layer in self.encoder["layers"].children():
            x = layer(x)
            layers.append(x)
        return layers

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        layers = self.states(ids)
        context = self.ops.layer_norm(layers[-1], self.final_layer_norm)
        if not self.skips:
            return (context,)
        skipped = [self.ops.layer_norm(layers[-2 - skip], self.final_layer_norm) for skip in range(self.skips)]
        return context, torch.stack(skipped, dim=1)


class ClipVision(nn.Module):
    """The vision tower and its projection. Parameter names are the checkpoint's, `pre_layrnorm` as it is there."""

    def __init__(self, spec: VisionSpec, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.vision_model = _Vision(spec, ops)
        self.visual_projection = nn.Linear(spec.width, spec.projection, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pictures [n, 3, side, side] -> embeddings [n, projection], of any length."""
        return self.visual_projection(self.vision_model(pixels))


class _Vision(nn.Module):
    def __init__(self, spec: VisionSpec, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.embeddings = _Patches(spec, ops)
        self.pre_layrnorm = nn.LayerNorm(spec.width, eps=spec.eps)
        layers = nn.ModuleList(_Layer(spec, ops, causal=False) for _ in range(spec.layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(spec.width, eps=spec.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.ops.layer_norm(self.embeddings(pixels), self.pre_layrnorm)  # [n, 1 + patches, width]
        for layer in self.encoder["layers"].children():
            x = layer(x)
        return self.ops.layer_norm(x[:, 0], self.post_layernorm)


class _Patches(nn.Module):
    """A token a patch, behind one that stands for the whole picture; each has its position's vector added."""

    def __init__(self, spec: VisionSpec, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.class_embedding = nn.Parameter(torch.empty(spec.width))
        self.patch_embedding = nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch, bias=False)
        self.position_embedding = nn.Embedding(1 + (spec.side // spec.patch) ** 2, spec.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.ops.conv(pixels, self.patch_embedding).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat((first, patches), dim=1) + self.position_embedding.weight


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

    def __init__(self, spec: TextSpec | VisionSpec, ops: Ops, *, causal: bool) -> None:
        super().__init__()
        self.ops = ops
        self.layer_norm1 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.self_attn = _SelfAttention(spec, ops, causal=causal)
        self.layer_norm2 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.mlp = _Mlp(spec, ops)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn(self.ops.layer_norm(x, self.layer_norm1), residual=x)
        return self.mlp(self.ops.layer_norm(x, self.layer_norm2), residual=x)


class _SelfAttention(nn.Module):
    def __init__(self, spec: TextSpec | VisionSpec, ops: Ops, *, causal: bool) -> None:
        super().__init__()
        self.ops, self.heads, self.causal = ops, spec.heads, causal
        self.q_proj = nn.Linear(spec.width, spec.width)
        self.k_proj = nn.Linear(spec.width, spec.width)
        self.v_proj = nn.Linear(spec.width, spec.width)
        self.out_proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        q, k, v = self.ops.linears(x, (self.q_proj, self.k_proj, self.v_proj))
        return self.ops.linear(self.ops.attention(q, k, v, self.heads, causal=self.causal), self.out_proj, residual)


class _Mlp(nn.Module):
    def __init__(self, spec: TextSpec | VisionSpec, ops: Ops) -> None:
        super().__init__()
        self.ops, self.quick = ops, spec.activation == "quick_gelu"
        self.fc1 = nn.Linear(spec.width, spec.hidden)
        self.fc2 = nn.Linear(spec.hidden, spec.width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.ops.linear(x, self.fc1)  # [n, tokens, hidden]
        # OpenAI's towers were trained with the sigmoid approximation of GELU (Hendrycks and Gimpel 2016, section 2).
        x = x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x)
        return self.ops.linear(x, self.fc2, residual)
