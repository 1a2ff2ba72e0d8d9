"""adamw.safetensors: gradient clip, AdamW and the moving average of the weights."""

import math

import numpy as np
import torch
from torch import nn

from golden_file import close, normal, rounded, write


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
