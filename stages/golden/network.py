"""The decoupled transformer on SiT blocks, from timm's parts."""

import math

import numpy as np
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from timm.layers import Attention, Mlp, PatchEmbed
from torch import nn

from golden_file import close


def timestep_embedding(t, dim=256, max_period=10000):
    """[cos, sin] of t * max_period^(-i/half), t in [0,1] unscaled."""
    half = dim // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float64) / half)
    angle = t.double()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def position_embedding(dim, grid):
    """[grid*grid, dim] f64: first half of the channels from the column, second from the row; each [sin, cos]."""
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    row, column = np.divmod(np.arange(grid * grid), grid)
    halves = [f(np.outer(axis, omega)) for axis in (column, row) for f in (np.sin, np.cos)]
    table = torch.from_numpy(np.concatenate(halves, axis=1))
    close("pos_embed", table, get_2d_sincos_pos_embed(dim, grid, base_size=grid), 1e-6)
    return table


def per_token(c):
    """A condition [B,D] holds for every token: [B,1,D]; one per token is [B,T,D] already."""
    return c.unsqueeze(1) if c.dim() == 2 else c


class SiTBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        m = self.adaLN_modulation(per_token(c)).chunk(6, dim=-1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = m
        x = x + gate_msa * self.attn(self.norm1(x) * (1 + scale_msa) + shift_msa)
        return x + gate_mlp * self.mlp(self.norm2(x) * (1 + scale_mlp) + shift_mlp)


class TimestepEmbedder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        return self.mlp(timestep_embedding(t).to(self.mlp[0].weight.dtype))


class FinalLayer(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(per_token(c)).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class LabelEmbedder(nn.Module):
    def __init__(self, rows, dim):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, dim)


class DecoupledSiT(nn.Module):
    """DDT on SiT blocks: encoder conditioned by t + y, decoder per token by t + z, z the raw encoder output."""

    def __init__(self, dim, depth, encoder_depth, heads, classes, grid, projector):
        super().__init__()
        self.encoder_depth, self.grid = encoder_depth, grid
        self.pos_embed = position_embedding(dim, grid)
        self.x_embedder = PatchEmbed(2 * grid, 2, 4, dim)
        self.s_embedder = PatchEmbed(2 * grid, 2, 4, dim)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = LabelEmbedder(classes + 1, dim)
        self.blocks = nn.ModuleList(SiTBlock(dim, heads) for _ in range(depth))
        self.final_layer = FinalLayer(dim, 2 * 2 * 4)
        hidden, out = projector
        mlp = [nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)]
        self.projectors = nn.ModuleList([nn.Sequential(*mlp)])

    def forward(self, x, t, y):
        position, t = self.pos_embed.to(x.dtype), self.t_embedder(t)
        z = self.s_embedder(x) + position
        for block in self.blocks[: self.encoder_depth]:
            z = block(z, t + self.y_embedder.embedding_table(y))
        h, c = self.x_embedder(x) + position, t.unsqueeze(1) + z
        for block in self.blocks[self.encoder_depth :]:
            h = block(h, c)
        patches = self.final_layer(h, c).unflatten(1, (self.grid, self.grid)).unflatten(-1, (2, 2, 4))
        return torch.einsum("nhwpqc->nchpwq", patches).flatten(4, 5).flatten(2, 3), z, self.projectors[0](z)


class SiT(nn.Module):
    """Plain SiT: one stream of tokens, one condition t + y an image; with `channels` 8 the upper half is a variance."""

    def __init__(self, dim, depth, heads, classes, grid, channels, projectors=()):
        super().__init__()
        self.grid, self.channels = grid, channels
        self.pos_embed = nn.Parameter(position_embedding(dim, grid).float().unsqueeze(0), requires_grad=False)
        self.x_embedder = PatchEmbed(2 * grid, 2, 4, dim)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = LabelEmbedder(classes + 1, dim)
        self.blocks = nn.ModuleList(SiTBlock(dim, heads) for _ in range(depth))
        self.final_layer = FinalLayer(dim, 2 * 2 * channels)
        mlp = lambda h, out: [nn.Linear(dim, h), nn.SiLU(), nn.Linear(h, h), nn.SiLU(), nn.Linear(h, out)]
        if projectors:
            self.projectors = nn.ModuleList(nn.Sequential(*mlp(h, out)) for h, out in projectors)

    def forward(self, x, t, y):
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder.embedding_table(y)
        for block in self.blocks:
            x = block(x, c)
        patches = self.final_layer(x, c).unflatten(1, (self.grid, self.grid)).unflatten(-1, (2, 2, self.channels))
        return torch.einsum("nhwpqc->nchpwq", patches).flatten(4, 5).flatten(2, 3)[:, :4]
