"""The DUPA training step in PyTorch: K noisy views, decoupled transformer, cosine between projected conditions.

    python step_torch.py RECORD --preset dupa-s/2 [--mode eager|compile] [--precision f32|bf16] [--device cpu|cuda:0]
                         [--batch 8] [--steps 10] [--warmup 2] [--threads N] [--check]

Plain modules, `scaled_dot_product_attention`, fused AdamW, foreach clipping and average; bf16 by autocast over f32 weights.
RECORD is what `pipeline bench step --record` wrote: weights, a batch, its draws, and what ours made of them. The losses and
the norm of the gradients are computed from it first; with --check, that is all. Prints one JSON object:

    velocity_loss, alignment_loss, gradient_norm     of the record
    error                                            the largest relative difference of the three to the record's
    images_per_s, ms_per_step {median, p10, p90}     of whole steps with fresh draws
    start_bytes, peak_bytes                          largest resident set before the network was made, and in all
    device_peak_bytes                                on a GPU, the most that PyTorch's allocator had given away

Every step is waited for, as in ours.

Needs requirements-step.txt; --mode compile also a C++ compiler.
"""

import argparse
import json
import math
import resource
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

SIZES = {"s": (12, 384, 6, 4), "b": (12, 768, 12, 4), "l": (24, 1024, 16, 8), "xl": (28, 1152, 16, 8)}
LAMBDA, LABEL_DROP, POSTERIOR, EMA_DECAY, CLIP = 0.5, 0.1, 9.1e-4, 0.9999, 1.0


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        m = self.adaLN_modulation(c).chunk(6, dim=-1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = m
        x = x + gate_msa * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        return x + gate_mlp * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class PatchEmbed(nn.Module):
    def __init__(self, dim, channels, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.register_buffer("frequency", torch.exp(-math.log(10000) * torch.arange(128) / 128), persistent=False)

    def forward(self, t):
        angle = t[:, None] * self.frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    def __init__(self, classes, dim):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, y):
        return self.embedding_table(y)


class FinalLayer(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def position_embedding(dim, grid):
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    halves = [f(axis.flatten()[:, None] * omega) for axis in (column, row) for f in (torch.sin, torch.cos)]
    return torch.cat(halves, dim=1).float()


class Dupa(nn.Module):
    def __init__(self, size, patch, channels=4, side=32, classes=1000):
        super().__init__()
        depth, dim, heads, self.encoder_depth = SIZES[size]
        self.patch, self.grid = patch, side // patch
        self.register_buffer("pos_embed", position_embedding(dim, self.grid), persistent=False)
        self.x_embedder = PatchEmbed(dim, channels, patch)
        self.s_embedder = PatchEmbed(dim, channels, patch)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = LabelEmbedder(classes, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.final_layer = FinalLayer(dim, patch * patch * channels)
        mlp = [nn.Linear(dim, 2048), nn.SiLU(), nn.Linear(2048, 2048), nn.SiLU(), nn.Linear(2048, 768)]
        self.projectors = nn.ModuleList([nn.Sequential(*mlp)])

    def forward(self, x, t, y):
        t = self.t_embedder(t)
        z, c = self.s_embedder(x) + self.pos_embed, (t + self.y_embedder(y))[:, None]
        for block in self.blocks[: self.encoder_depth]:
            z = block(z, c)
        h, c = self.x_embedder(x) + self.pos_embed, t[:, None] + z
        for block in self.blocks[self.encoder_depth :]:
            h = block(h, c)
        patches = self.final_layer(h, c).unflatten(1, (self.grid, self.grid)).unflatten(-1, (self.patch, self.patch, -1))
        velocity = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return velocity, self.projectors[0](z)


def losses(network, latents, t, noise, labels):
    """Velocity and alignment loss of K views: t [K,B], noise [K,B,C,h,w], labels [K,B]."""
    views = t.shape[0]
    time = t[:, :, None, None, None]
    x_t = (1 - time) * latents + time * noise
    velocity, projected = network(x_t.flatten(0, 1), t.flatten(), labels.flatten())
    velocity_loss = (velocity.float() - (noise - latents).flatten(0, 1)).square().mean()
    unit = F.normalize(projected.float(), dim=-1).unflatten(0, (views, -1))
    pairs = [(unit[i] * unit[j]).sum(-1).mean() for j in range(views) for i in range(j)]
    return velocity_loss, -torch.stack(pairs).mean()


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("record")
    parser.add_argument("--preset", default="dupa-s/2")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, help="else as many as PyTorch takes")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print where two steps spend their time, and stop")
    options = parser.parse_args()

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    start = peak_bytes()
    record = load_file(options.record)
    method, size = options.preset.split("-", 1)
    if method != "dupa":
        raise SystemExit(f"--preset {options.preset}: this peer knows dupa-s/2 and its other sizes")
    letter, patch = size.split("/")
    device = options.device
    network = Dupa(letter, int(patch)).to(device)
    weights = {name.removeprefix("model."): value for name, value in record.items() if name.startswith("model.")}
    network.load_state_dict(weights)
    average = [p.detach().clone() for p in network.parameters()]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    compute = torch.compile(losses) if options.mode == "compile" else losses
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16")

    def backward(latents, t, noise, labels):
        optimiser.zero_grad(set_to_none=True)
        with autocast:
            velocity_loss, alignment_loss = compute(network, latents, t, noise, labels)
            total = velocity_loss + LAMBDA * alignment_loss
        total.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), CLIP, foreach=True)
        return velocity_loss.detach(), alignment_loss.detach(), norm

    recorded = [record[key].to(device) for key in ("latents", "t", "noise", "view_labels")]
    figures = dict(zip(("velocity_loss", "alignment_loss", "gradient_norm"), map(float, backward(*recorded))))
    error = max(abs(value / float(record[key]) - 1) for key, value in figures.items())
    answer = figures | {"mode": options.mode, "precision": options.precision, "error": error}
    answer["threads"] = torch.get_num_threads()
    del record, weights, recorded
    if options.check:
        print(json.dumps(answer))
        return

    mean = torch.randn(options.batch, 4, 32, 32, device=device)
    labels = torch.arange(options.batch, device=device) % 1000

    def step():
        latents = mean + POSTERIOR * torch.randn_like(mean)
        t, noise = torch.rand(2, options.batch, device=device), torch.randn(2, *mean.shape, device=device)
        view_labels = torch.where(torch.rand(2, options.batch, device=device) < LABEL_DROP, 1000, labels)
        backward(latents, t, noise, view_labels)
        optimiser.step()
        torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 1 - EMA_DECAY)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(options.warmup):
        step()
    if options.profile:
        with torch.profiler.profile() as profiler:
            step()
            step()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))
        return
    times = []
    for _ in range(options.steps):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    times.sort()

    def at(share):
        return times[round(share * (len(times) - 1))]

    answer |= {
        "batch": options.batch,
        "steps": options.steps,
        "images_per_s": options.batch / at(0.5),
        "ms_per_step": {"median": at(0.5) * 1e3, "p10": at(0.1) * 1e3, "p90": at(0.9) * 1e3},
        "start_bytes": start,
        "peak_bytes": peak_bytes(),
    }
    if device.type == "cuda":
        answer["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
