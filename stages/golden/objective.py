"""block.safetensors, dupa.safetensors, dupa_grads.safetensors: the network and its loss."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from golden_file import close, normal, randomise, rounded, uniform, weights, write
from network import DecoupledSiT, SiTBlock, TimestepEmbedder, position_embedding, timestep_embedding


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
    repeated = exact(x.double(), c.double()[:, None].repeat(1, 6, 1))
    close("block: a vector is the same token six times", repeated, y_vector, 1e-14)
    diffusers_embedding = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    close("t_embedding", t_embedding, diffusers_embedding, 1e-6)
    close("t_embedded in f32", embedder.t_embedder(t), t_embedded, 1e-5)
    config = {"dim": 24, "heads": 3, "mlp_ratio": 4, "norm_eps": 1e-6, "frequencies": 256, "max_period": 10000}
    outputs = rounded(y_vector=y_vector, y_tokens=y_tokens, t_embedding_256=t_embedding, t_embedded=t_embedded)
    outputs |= rounded(pos_embed_4x4_16=position_embedding(16, 4))
    inputs = {"x": x, "c": c, "c_tokens": c_tokens, "t": t}
    write("block.safetensors", config, {**inputs, **outputs, **weights(sit), **weights(embedder)})


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
    grads = torch.autograd.grad(loss, parameters)
    # The key third of qkv.bias has gradient 0 exactly; the 1e-17 that summation leaves there depends on the CPU.
    return {name: torch.where(g.abs() < 1e-14, 0.0, g) for name, g in zip(names, grads)}


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
        size = grads[name].norm()
        close("dupa gradients in f32, relative to the norm of each", (g - grads[name]).norm() / size, 0 * size, 2e-5)
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

    config = shape | {"patch": 2, "mlp_ratio": 4, "null_class": 5, "norm_eps": 1e-6}
    config |= {"alignment_coefficient": coefficient, "velocity_reduction": "mean"}
    config |= {"cosine": "torch.nn.functional.cosine_similarity, eps 1e-8"}
    inputs = {"latents": latents, "labels": labels, "t": t, "noise": noise, "view_labels": view_labels}
    inputs |= {"k3.t": k3_t, "k3.noise": k3_noise, "k3.view_labels": k3_labels}
    outputs = rounded(**out, **{f"k3.{key}": k3[key] for key in ("velocity_loss", "alignment_loss")})
    write("dupa.safetensors", config, {**inputs, **outputs, **weights(model)})
    write("dupa_grads.safetensors", config, {f"grads.{name}": g.float() for name, g in grads.items()})
