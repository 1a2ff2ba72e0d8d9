"""Make the golden files of this folder with independent Python implementations.

    python make_golden.py             every file
    python make_golden.py vae crop    some of them

The README beside it says what each key holds. Random weights and inputs come from NumPy's PCG64 and are rounded to
f32; every output is then computed in f64 from those f32 values and rounded once, so that a golden is the exact
answer and neither the CPU kind nor the thread count of the machine that made it shows. Every case is checked by a
second computation before it is written.
"""

import copy
import hashlib
import importlib.metadata
import json
import math
import pathlib
import struct
import sys

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
import xxhash
from diffusers import AutoencoderKL
from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_timestep_embedding
from PIL import Image
from timm.layers import Attention, Mlp, PatchEmbed
from torch import nn

FOLDER = pathlib.Path(__file__).resolve().parent
LIMIT = 200_000  # bytes a committed file may have
VERSIONS = dict(line.split("==") for line in (FOLDER / "requirements.txt").read_text().split("\n") if "==" in line)


# ---------------------------------------------------------------------------------------------- shared by all cases


def normal(rng, *shape, std=1.0):
    """N(0, std^2), f32-representable."""
    return torch.from_numpy((std * rng.standard_normal(shape)).astype(np.float32))


def uniform(rng, low, high, *shape):
    """U(low, high), f32-representable."""
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def randomise(module, rng):
    """Give every parameter a random value: a zero or a one would hide whatever it multiplies."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.copy_(normal(rng, *p.shape, std=0.2))
            elif "norm" in name:
                p.copy_(1 + normal(rng, *p.shape, std=0.2))
            elif "embedding_table" in name:
                p.copy_(normal(rng, *p.shape, std=0.7))
            else:
                p.copy_(normal(rng, *p.shape, std=1 / math.sqrt(p[0].numel())))
    return module


def close(what, a, b, limit):
    """Assert |a - b| <= limit * max(1, |b|) everywhere."""
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} against {tuple(b.shape)}"
    error = ((a - b).abs() / b.abs().clamp_min(1)).max().item()
    assert error <= limit, f"{what}: second computation differs by {error:.3g} > {limit:g}"


def write(file, config, tensors):
    """Write `file`. The safetensors library orders metadata by a random hash; this sorts, so bytes repeat."""
    as_array = {k: (v.detach().numpy() if isinstance(v, torch.Tensor) else v) for k, v in tensors.items()}
    code = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8"}
    header, data, metadata = {}, b"", {"config": config, "versions": VERSIONS}
    header["__metadata__"] = {k: json.dumps(v, sort_keys=True) for k, v in metadata.items()}
    for key in sorted(as_array, key=lambda k: (-as_array[k].itemsize, k)):
        array = np.ascontiguousarray(as_array[key]).reshape(as_array[key].shape)
        assert array.dtype.kind != "f" or np.isfinite(array).all(), f"{file}: {key} is not finite"
        begin, data = len(data), data + array.tobytes()
        header[key] = {"dtype": code[array.dtype.name], "shape": array.shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = FOLDER / file
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    size = path.stat().st_size
    assert size <= LIMIT, f"{file}: {size} bytes"
    for key, tensor in safetensors.torch.load_file(path).items():
        assert np.array_equal(tensor.numpy(), as_array[key]), f"{file}: {key} does not read back"
    print(f"{file:24} {size:7} bytes  {len(tensors):3} tensors")


def weights(module, prefix="weights."):
    return {prefix + name: p.detach().float() for name, p in module.named_parameters()}


def rounded(**outputs):
    """f64 results to the f32 that is stored."""
    return {key: value.detach().float() for key, value in outputs.items()}


# ------------------------------------------------------------------------------------------------------- autoencoder


def encode_decode(model, image, latent):
    with torch.no_grad():
        posterior = model.encode(image).latent_dist
        return posterior.mean, posterior.logvar, model.decode(latent).sample


def make_vae(file, seed, stream_scale):
    rng = np.random.default_rng(seed)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 12, 12],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()
    randomise(model, rng)
    with torch.no_grad():
        # log-variances wide enough to reach both ends of the clamp to [-30, 20]
        model.quant_conv.weight[4:] *= 12
        model.quant_conv.bias[4:] += torch.tensor([15.0, -10.0, 0.0, -20.0])
        # Every GroupNorm input becomes small, so that its eps (1e-6 here, 1e-5 elsewhere) decides the result.
        for name, p in model.named_parameters():
            into_stream = any(part in name for part in (".conv_in.", ".conv1.", ".conv2.", ".to_out."))
            between = any(part in name for part in ("conv_shortcut.bias", "downsamplers.0.conv.bias", "upsamplers.0.conv.bias"))
            if into_stream or between:
                p *= stream_scale
    image, latent = uniform(rng, -1, 1, 1, 3, 32, 24), normal(rng, 1, 4, 8, 6)
    exact = copy.deepcopy(model).double()
    mean, logvar, decoded = encode_decode(exact, image.double(), latent.double())
    for what, a, b in zip(("mean", "logvar", "decoded"), encode_decode(model, image, latent), (mean, logvar, decoded)):
        close(f"{file} {what} in f32", a, b, 2e-5)
    free = ((logvar > -30) & (logvar < 20)).double().mean().item()
    assert (logvar == 20).any() and (logvar == -30).any() and free > 0.5, f"{file}: {free:.2f} of logvar unclamped"
    if stream_scale != 1:
        for name, norm in exact.named_modules():
            if isinstance(norm, nn.GroupNorm):
                assert norm.eps == 1e-6, f"{file}: {name} has eps {norm.eps}"
                norm.eps = 1e-5
                wrong = encode_decode(exact, image.double(), latent.double())
                norm.eps = 1e-6
                seen = max((a - b).abs().max().item() for a, b in zip(wrong, (mean, logvar, decoded)))
                assert seen > 1e-3, f"{file}: eps 1e-5 in {name} would change the outputs by {seen:.2g} only"
    config = {k: v for k, v in model.config.items() if k != "_use_default_values"} | {"_class_name": "AutoencoderKL"}
    outputs = rounded(mean=mean, logvar=logvar, decoded=decoded)
    write(file, config, {"input": image, "latent": latent, **outputs, **weights(model)})


def vae():
    make_vae("vae.safetensors", 1, 1.0)
    make_vae("vae_eps.safetensors", 2, 3e-3)


# ------------------------------------------------------------------------------------------------------- transformer


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


def block():
    rng = np.random.default_rng(3)
    sit, embedder = randomise(SiTBlock(24, 3), rng), nn.Module()
    embedder.t_embedder = randomise(TimestepEmbedder(24), rng)
    x, c, c_tokens = normal(rng, 2, 6, 24), normal(rng, 2, 24), normal(rng, 2, 6, 24)
    t = torch.cat([torch.tensor([0.0, 1.0, 0.5]), uniform(rng, 0, 1, 2)])
    exact, exact_embedder = copy.deepcopy(sit).double(), copy.deepcopy(embedder).double()
    y_vector, y_tokens = exact(x.double(), c.double()), exact(x.double(), c_tokens.double())
    t_embedding = timestep_embedding(t)
    t_embedded = exact_embedder.t_embedder(t)

    sit.attn.fused_attn = False
    close("block y_vector in f32", sit(x, c), y_vector, 1e-5)
    close("block y_tokens in f32", sit(x, c_tokens), y_tokens, 1e-5)
    close("block: a vector is the same token six times", exact(x.double(), c.double()[:, None].repeat(1, 6, 1)), y_vector, 1e-14)
    diffusers_embedding = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    close("t_embedding", t_embedding, diffusers_embedding, 1e-6)
    close("t_embedded in f32", embedder.t_embedder(t), t_embedded, 1e-5)
    config = {"dim": 24, "heads": 3, "mlp_ratio": 4, "norm_eps": 1e-6, "frequencies": 256, "max_period": 10000}
    outputs = rounded(y_vector=y_vector, y_tokens=y_tokens, t_embedding_256=t_embedding, t_embedded=t_embedded)
    outputs |= rounded(pos_embed_4x4_16=position_embedding(16, 4))
    inputs = {"x": x, "c": c, "c_tokens": c_tokens, "t": t}
    write("block.safetensors", config, {**inputs, **outputs, **weights(sit), **weights(embedder)})


# --------------------------------------------------------------------------------------------------------- objective


def objective(model, latents, t, noise, labels, coefficient):
    """Velocity loss (mean over K,B,C,H,W) and alignment loss (-mean over pairs, images, tokens of the cosine)."""
    views = len(t)
    time = t[:, :, None, None, None].to(latents.dtype)
    x_t = (1 - time) * latents + time * noise
    velocity, z, projected = model(x_t.flatten(0, 1), t.flatten(), labels.flatten())
    velocity, z, projected = (a.unflatten(0, t.shape) for a in (velocity, z, projected))
    velocity_loss = F.mse_loss(velocity, noise - latents)
    pairs = [(i, j) for i in range(views) for j in range(i + 1, views)]
    cosines = [F.cosine_similarity(projected[i], projected[j], dim=-1, eps=1e-8) for i, j in pairs]
    alignment_loss = -torch.stack(cosines).mean()
    loss = velocity_loss + coefficient * alignment_loss
    return {
        "x_t": x_t,
        "velocity": velocity,
        "z": z,
        "projected": projected,
        "velocity_loss": velocity_loss,
        "alignment_loss": alignment_loss,
        "loss": loss,
    }


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters)))


def dupa():
    rng = np.random.default_rng(4)
    shape = {"dim": 16, "depth": 3, "encoder_depth": 2, "heads": 2, "classes": 5, "grid": 4, "projector": [24, 12]}
    coefficient = 0.5
    model = randomise(DecoupledSiT(**shape), rng)
    latents, labels = normal(rng, 3, 4, 8, 8), torch.tensor([2, 5, 0])
    t, noise = uniform(rng, 0.02, 0.98, 2, 3), normal(rng, 2, 3, 4, 8, 8)
    view_labels = torch.tensor([[2, 5, 5], [2, 5, 0]])
    k3_t, k3_noise, k3_labels = uniform(rng, 0.02, 0.98, 3, 3), normal(rng, 3, 3, 4, 8, 8), labels.repeat(3, 1)

    exact = copy.deepcopy(model).double()
    case = (latents.double(), t, noise.double(), view_labels, coefficient)
    out = objective(exact, *case)
    grads = gradients(exact, out["loss"])
    k3 = objective(exact, latents.double(), k3_t, k3_noise.double(), k3_labels, coefficient)

    # f32, unfused attention
    for b in model.blocks:
        b.attn.fused_attn = False
    single = objective(model, latents, t, noise, view_labels, coefficient)
    for key, value in single.items():
        close(f"dupa {key} in f32", value, out[key], 1e-5)
    for name, g in gradients(model, single["loss"]).items():
        error = ((g - grads[name]).norm() / grads[name].norm()).item()
        assert error < 2e-5, f"dupa gradient of {name} in f32: {error:.2g}"
    # central difference along a random direction
    direction = {n: normal(rng, *p.shape).double() for n, p in exact.named_parameters()}
    slope, h, ends = sum((grads[n] * direction[n]).sum() for n in grads), 1e-5, []
    for sign in (1, -1):
        moved = copy.deepcopy(exact)
        with torch.no_grad():
            for n, p in moved.named_parameters():
                p += sign * h * direction[n]
        ends.append(objective(moved, *case)["loss"])
    close("dupa directional derivative", (ends[0] - ends[1]) / (2 * h), slope, 1e-6)
    # view by view, pairs by normalised dot products
    for name, o, (times, eps, drawn) in (("k2", out, case[1:4]), ("k3", k3, (k3_t, k3_noise.double(), k3_labels))):
        views = []
        for k in range(len(times)):
            s = times[k].double()[:, None, None, None]
            views.append(exact((1 - s) * case[0] + s * eps[k], times[k], drawn[k]))
        errors = torch.stack([(v - (eps[k] - case[0])).square() for k, (v, _, _) in enumerate(views)])
        unit = [p / p.norm(dim=-1, keepdim=True) for _, _, p in views]
        dots = torch.stack([(unit[i] * unit[j]).sum(-1) for j in range(len(unit)) for i in range(j)])
        close(f"dupa {name} velocity loss by view", errors.mean(), o["velocity_loss"], 1e-12)
        close(f"dupa {name} alignment loss by view", -dots.mean(), o["alignment_loss"], 1e-12)
        assert 0.02 < -o["alignment_loss"] < 0.98
    idle = [n for n, g in grads.items() if g.norm() < 1e-4]
    assert not idle, f"dupa: gradients too small to test anything: {idle}"

    config = shape | {"patch": 2, "mlp_ratio": 4, "null_class": 5, "alignment_coefficient": coefficient, "norm_eps": 1e-6}
    config |= {"cosine": "torch.nn.functional.cosine_similarity eps 1e-8", "velocity_reduction": "mean"}
    inputs = {"latents": latents, "labels": labels, "t": t, "noise": noise, "view_labels": view_labels}
    inputs |= {"k3.t": k3_t, "k3.noise": k3_noise, "k3.view_labels": k3_labels}
    outputs = rounded(**out, **{f"k3.{key}": k3[key] for key in ("velocity_loss", "alignment_loss")})
    write("dupa.safetensors", config, {**inputs, **outputs, **weights(model)})
    write("dupa_grads.safetensors", config, {f"grads.{name}": g.float() for name, g in grads.items()})


def adamw():
    rng = np.random.default_rng(5)
    config = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0, "ema_decay": 0.9}
    start = [normal(rng, 7, 5), normal(rng, 13)]
    steps = [[normal(rng, *p.shape, std=std) for p in start] for std in (1.0, 0.05, 0.4)]

    def train(dtype):
        """torch.optim.AdamW after torch.nn.utils.clip_grad_norm_."""
        params = [p.to(dtype, copy=True).requires_grad_() for p in start]
        ema, out = [p.detach().clone() for p in params], {}
        optimiser = torch.optim.AdamW(
            params, config["lr"], tuple(config["betas"]), config["eps"], config["weight_decay"], foreach=False
        )
        for step, grads in enumerate(steps):
            for p, g in zip(params, grads):
                p.grad = g.to(dtype, copy=True)
            out[f"norm.{step}"] = nn.utils.clip_grad_norm_(params, config["clip"])
            optimiser.step()
            for i, p in enumerate(params):
                ema[i] = ema[i] * config["ema_decay"] + p.detach() * (1 - config["ema_decay"])
                out |= {f"after.{step}.{i}": p.detach().clone(), f"ema.{step}.{i}": ema[i]}
        for i, p in enumerate(params):
            out |= {f"{key}.{i}": optimiser.state[p][key] for key in ("exp_avg", "exp_avg_sq")}
        return out

    out = train(torch.float64)
    for key, value in train(torch.float32).items():
        close(f"adamw {key} in f32", value, out[key], 1e-6)
    # the update rule written out
    (b1, b2), p, m, v = config["betas"], start[0].double(), 0.0, 0.0
    for step, grads in enumerate(steps):
        norm = math.sqrt(sum(g.double().square().sum() for g in grads))
        g = grads[0].double() * min(1.0, config["clip"] / (norm + 1e-6))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        p = p * (1 - config["lr"] * config["weight_decay"]) - config["lr"] * m_hat / (v_hat.sqrt() + config["eps"])
        close(f"adamw norm.{step}", out[f"norm.{step}"], torch.tensor(norm, dtype=torch.float64), 1e-12)
        close(f"adamw after.{step}.0", out[f"after.{step}.0"], p, 1e-12)
    assert out["norm.0"] > 1 and out["norm.1"] < 1 < out["norm.2"], "both sides of the clip must be seen"
    inputs = {f"param.{i}": p for i, p in enumerate(start)}
    inputs |= {f"grad.{step}.{i}": g for step, grads in enumerate(steps) for i, g in enumerate(grads)}
    write("adamw.safetensors", config, inputs | rounded(**out))


# ----------------------------------------------------------------------------------------------------------- sampler


def gaussian_velocity(x, t, mu, s):
    """E[eps - data | x_t] of the path x_t = (1-t) data + t eps where data ~ N(mu_c, s^2) in channel c."""
    a, mu = 1 - t, mu[None, :, None, None]
    return (t - a * s**2) / (a**2 * s**2 + t**2) * (x - a * mu) - mu


def sampler():
    rng = np.random.default_rng(6)
    steps, w, tight, wide = 10, 1.6, (0.0, 0.65), (0.0, 0.7)
    cond, uncond = (rng.standard_normal(4), np.array(0.6)), (rng.standard_normal(4), np.array(1.1))
    x0, xi = rng.standard_normal((2, 4, 4, 4)), rng.standard_normal((steps - 1, 2, 4, 4, 4))

    def field(x, t, gate_t, interval):
        c = gaussian_velocity(x, t, *cond)
        if interval is None or not interval[0] <= gate_t <= interval[1]:
            return c
        u = gaussian_velocity(x, t, *uncond)
        return u + w * (c - u)

    def ode(order, n=steps, interval=None):
        x, grid = x0.copy(), np.linspace(1, 0, n + 1)
        for k, (t, t_next) in enumerate(zip(grid[:-1], grid[1:])):
            v = field(x, t, t, interval)
            if order == 2 and k < n - 1:
                # the second evaluation is gated by the time where the step starts
                v = (v + field(x + (t_next - t) * v, t_next, t, interval)) / 2
            x = x + (t_next - t) * v
        return x

    def sde(n=steps, noise=xi, interval=None):
        x, grid = x0.copy(), np.append(np.linspace(1, 0.04, n), 0.0)
        for k, (t, t_next) in enumerate(zip(grid[:-1], grid[1:])):
            drift = (2 - t) * field(x, t, t, interval) + x
            x = x + drift * (t_next - t)
            if k < n - 1:
                x = x + np.sqrt(2 * t) * np.sqrt(t - t_next) * noise[k]
        return x

    out = {"euler": ode(1), "heun": ode(2), "euler_cfg": ode(1, interval=tight), "heun_cfg": ode(2, interval=tight)}
    out |= {"sde": sde(), "sde_cfg": sde(interval=wide)}
    # The flow of a Gaussian is known: x(0) = mu + s x(1). The errors must have the orders of the methods.
    answer = cond[0][None, :, None, None] + cond[1] * x0
    for order, low, high in ((1, 1.8, 2.3), (2, 3.5, 4.6)):
        errors = [np.abs(ode(order, n) - answer).max() for n in (200, 400)]
        assert low < errors[0] / errors[1] < high, f"sampler: order {order} shows {errors}"
    # The SDE must end at the data's distribution: mean and spread over many draws.
    many = 400
    ends = np.stack([sde(many, rng.standard_normal((many - 1, *x0.shape))) for _ in range(60)])
    centred = ends - cond[0][None, None, :, None, None]
    assert abs(centred.mean()) < 0.03 and abs(centred.std() - cond[1]) < 0.03, (centred.mean(), centred.std())
    config = {"steps": steps, "sde_t_last": 0.04, "guidance": w, "interval_sde_cfg": wide, "interval_ode_cfg": tight}
    config |= {"field": "(t - a s^2) / (a^2 s^2 + t^2) (x - a mu) - mu, a = 1 - t"}
    parameters = {"mu_cond": cond[0], "s_cond": cond[1], "mu_uncond": uncond[0], "s_uncond": uncond[1]}
    write("sampler.safetensors", config, {"x0": x0, "xi": xi, **parameters, **out})


# -------------------------------------------------------------------------------------------------------------- crop


def picture(w, h):
    """u8 [h, w, 3]: noise, two-way ramps and hard stripes in a patchwork; integers only (README)."""
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    texture = ((x * 37 + y * 91 + c * 53) ^ ((x * y) >> 3)) & 255
    ramp = (x * 255 // w + y * 255 // h + c * 40) >> 1
    stripes = ((x + 2 * y + 5 * c) % 13 < 6) * 255
    return np.choose((x // 23 + y // 17 + c) % 3, [texture, ramp & 255, stripes]).astype(np.uint8)


def adm_centre_crop(pixels, size):
    """guided-diffusion's centre crop, by Pillow."""
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def resample(pixels, out, support, kernel):
    """Pillow's algorithm along axis 1: f64 weights to 22-bit integers, i64 sums, rounded and clipped to u8."""
    size = pixels.shape[1]
    if size == out:
        return pixels
    scale = size / out
    stretch = max(scale, 1.0)
    result = np.empty((pixels.shape[0], out, 3), np.uint8)
    for i in range(out):
        centre = (i + 0.5) * scale
        first = max(int(centre - support * stretch + 0.5), 0)
        last = min(int(centre + support * stretch + 0.5), size)
        k = [kernel((j - centre + 0.5) / stretch) for j in range(first, last)]
        k = [int(v / sum(k) * (1 << 22) + (0.5 if v >= 0 else -0.5)) for v in k]
        total = np.tensordot(pixels[:, first:last].astype(np.int64), np.array(k), axes=([1], [0])) + (1 << 21)
        result[:, i] = np.clip(total >> 22, 0, 255)
    return result


def cubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def adm_centre_crop_again(pixels, size):
    """The same from the algorithm, without Pillow: columns first, u8 between the passes."""

    def resize(w, h, support, kernel):
        narrow = resample(pixels, w, support, kernel)
        return resample(narrow.transpose(1, 0, 2), h, support, kernel).transpose(1, 0, 2)

    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resize(pixels.shape[1] // 2, pixels.shape[0] // 2, 0.5, lambda x: float(-0.5 < x <= 0.5))
    scale = size / min(pixels.shape[:2])
    pixels = resize(round(pixels.shape[1] * scale), round(pixels.shape[0] * scale), 2.0, cubic)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


SIZES = """32x32 33x33 64x64 65x63 31x47 500x33 33x500 200x150 127x255 128x128 100x1 257x64 1x1 1x100 16x16 31x31 32x64
63x63 64x65 63x200 96x131 129x130 150x200 255x255 256x256 333x77 77x333 500x375""".split()
LARGE = "500x375 640x1100 300x200".split()


def crop():
    tensors, inputs, hashes = {}, {}, {}
    for name in SIZES:
        w, h = map(int, name.split("x"))
        pixels = picture(w, h)
        tensors[f"crop_{name}"] = adm_centre_crop(pixels, 32)
        inputs[name] = xxhash.xxh3_64_hexdigest(pixels.tobytes())
        assert np.array_equal(tensors[f"crop_{name}"], adm_centre_crop_again(pixels, 32)), f"crop of {name}"
    for name in LARGE:
        w, h = map(int, name.split("x"))
        cropped = adm_centre_crop(picture(w, h), 256)
        assert np.array_equal(cropped, adm_centre_crop_again(picture(w, h), 256)), f"crop of {name} to 256"
        data = np.ascontiguousarray(cropped).tobytes()
        hashes[name] = {"xxh3_64": xxhash.xxh3_64_hexdigest(data), "sha256": hashlib.sha256(data).hexdigest()}
        inputs[name] = xxhash.xxh3_64_hexdigest(picture(w, h).tobytes())
    write("crop.safetensors", {"size": 32, "input_xxh3_64": inputs, "crop_256": hashes}, tensors)


# -------------------------------------------------------------------------------------------------------------- main

CASES = {f.__name__: f for f in (vae, block, dupa, adamw, sampler, crop)}


def main(names):
    for package, version in VERSIONS.items():
        found = importlib.metadata.version(package)
        assert found == version, f"{package} {found} is installed; requirements.txt pins {version}"
    unknown = [n for n in names if n not in CASES]
    assert not unknown, f"no such case: {unknown}; there are {list(CASES)}"
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    for name in names or CASES:
        CASES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
