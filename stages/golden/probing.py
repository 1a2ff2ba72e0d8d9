"""probing.safetensors: training of a linear probe by LARS and by Adam, and CKNNA."""

import numpy as np
import torch
from timm.optim import Lars
from torch import nn

from golden_file import close, normal, write

EPOCHS, BATCH, STEPS = 10, 8, 2  # 20 rows: what is left of an epoch behind two batches is dropped
LARS = {"rate": 2.0, "warm_up": 3.0, "eps": 1e-6}
ADAM = {"rate": 0.02, "warm_up": 0.0, "eps": 1e-5}


def rate_at(epoch, c):
    if epoch < c["warm_up"]:
        return c["rate"] * epoch / c["warm_up"]
    return c["rate"] * 0.5 * (1 + np.cos(np.pi * (epoch - c["warm_up"]) / (EPOCHS - c["warm_up"])))


def written_out(x, y, orders, weight, c, lars):
    """In NumPy, from the formulas."""
    w, b = weight.copy(), np.zeros(len(weight))
    mean, variance = np.zeros(x.shape[1]), np.ones(x.shape[1])
    first, second = [np.zeros_like(w), np.zeros_like(b)], [np.zeros_like(w), np.zeros_like(b)]
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            rows, rate = orders[epoch][BATCH * step : BATCH * (step + 1)], rate_at(epoch + step / STEPS, c)
            batch, m = x[rows], len(rows)
            mean = 0.9 * mean + 0.1 * batch.mean(0)
            variance = 0.9 * variance + 0.1 * batch.var(0, ddof=1)
            z = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + c["eps"])
            e = np.exp(z @ w.T + b)
            slope = (e / e.sum(1, keepdims=True) - np.eye(len(b))[y[rows]]) / m
            for i, (p, g) in enumerate(((w, slope.T @ z), (b, slope.sum(0)))):
                if lars:
                    if p.ndim > 1:
                        p_norm, g_norm = np.sqrt((p * p).sum()), np.sqrt((g * g).sum())
                        g = g * (0.001 * p_norm / g_norm if p_norm > 0 and g_norm > 0 else 1.0)
                    first[i] = 0.9 * first[i] + g
                    p -= rate * first[i]
                else:
                    n = epoch * STEPS + step + 1
                    first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g * g
                    p -= rate * (first[i] / (1 - 0.9**n)) / (np.sqrt(second[i] / (1 - 0.999**n)) + 1e-8)
    logits = (x - mean) / np.sqrt(variance + c["eps"]) @ w.T + b
    return {"weight": w, "bias": b, "running_mean": mean, "running_variance": variance, "logits": logits}


def by_libraries(x, y, orders, weight, c, lars):
    """timm's LARS on the matrix and SGD with momentum on the bias, or torch's Adam; torch's BatchNorm1d and autograd."""
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    norm = nn.BatchNorm1d(x.shape[1], affine=False, eps=c["eps"]).double()
    linear = nn.Linear(x.shape[1], len(weight)).double()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.zero_()
    if lars:
        optimisers = [
            Lars([linear.weight], lr=1.0, momentum=0.9, trust_coeff=0.001, always_adapt=True, weight_decay=0.0),
            torch.optim.SGD([linear.bias], lr=1.0, momentum=0.9),
        ]
    else:
        optimisers = [torch.optim.Adam(linear.parameters(), lr=1.0)]
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            rows = orders[epoch][BATCH * step : BATCH * (step + 1)]
            for optimiser in optimisers:
                optimiser.zero_grad()
                optimiser.param_groups[0]["lr"] = rate_at(epoch + step / STEPS, c)
            nn.functional.cross_entropy(linear(norm(x[rows])), y[rows]).backward()
            for optimiser in optimisers:
                optimiser.step()
    norm.eval()
    found = {"weight": linear.weight, "bias": linear.bias, "logits": linear(norm(x))}
    return found | {"running_mean": norm.running_mean, "running_variance": norm.running_var}


def hsic(k, l):
    """Song et al., Eq. 5, by sums over indices."""
    m = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    first = sum(k[i, j] * l[j, i] for i in range(m) for j in range(m))
    second = k.sum() * l.sum() / ((m - 1) * (m - 2))
    third = 2 * sum(k[i, q] * l[q, j] for i in range(m) for q in range(m) for j in range(m)) / (m - 2)
    return (first + second - third) / (m * (m - 3))


def nearest(k, topk):
    """1 where j is among the topk rows nearest to i, other than i: not symmetric."""
    mask = np.zeros_like(k)
    for i in range(len(k)):
        others = sorted((j for j in range(len(k)) if j != i), key=lambda j: -k[i, j])
        mask[i, others[:topk]] = 1
    return mask


def cknna(a, b, topk):
    k, l = a @ a.T, b @ b.T
    mask_k, mask_l = nearest(k, topk), nearest(l, topk)
    sim = lambda p, q, mask: hsic(mask * p, mask * q)
    both = sim(k, l, mask_k * mask_l)
    return both / (np.sqrt(sim(k, k, mask_k) * sim(l, l, mask_l)) + 1e-6)


def cknna_by_torch(a, b, topk):
    """The same as dense tensors."""
    a, b = torch.from_numpy(a), torch.from_numpy(b)

    def unbiased(k, l):
        m = len(k)
        k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)
        value = (k * l.T).sum() + k.sum() * l.sum() / ((m - 1) * (m - 2)) - 2 * (k @ l).sum() / (m - 2)
        return value / (m * (m - 3))

    def masked(k, l):
        masks = []
        for x in (k, l):
            rows = x.clone().fill_diagonal_(float("-inf")).topk(topk, dim=1).indices
            masks.append(torch.zeros_like(x).scatter_(1, rows, 1))
        return unbiased(masks[0] * masks[1] * k, masks[0] * masks[1] * l)

    k, l = a @ a.T, b @ b.T
    return masked(k, l) / (torch.sqrt(masked(k, k) * masked(l, l)) + 1e-6)


def unit(x):
    return x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), 1e-12)


def clipped(x, q):
    """To the mean over rows of the quantile q of a row's absolute values (linear between its neighbours)."""
    limits = []
    for row in np.abs(x):
        row = np.sort(row)
        at = q * (len(row) - 1)
        low = int(at)
        limits.append(row[low] + (at - low) * (row[min(low + 1, len(row) - 1)] - row[low]))
    return np.clip(x, -np.mean(limits), np.mean(limits))


def probing():
    rng = np.random.default_rng(23)
    y = rng.integers(0, 4, 20)
    x = np.asarray(normal(rng, 4, 6) * 2, np.float64)[y] + np.asarray(normal(rng, 20, 6), np.float64)
    x *= np.array([1e-2, 1, 30, 1, 1, 5])
    orders = np.stack([rng.permutation(20) for _ in range(EPOCHS)])
    weight = np.asarray(normal(rng, 4, 6, std=0.01), np.float64)
    out = {"probe.features": x, "probe.labels": y, "probe.orders": orders, "probe.weight": weight}
    for name, config, lars in (("lars", LARS, True), ("adam", ADAM, False)):
        found, again = written_out(x, y, orders, weight, config, lars), by_libraries(x, y, orders, weight, config, lars)
        for key, value in found.items():
            close(f"{name} {key}", again[key].detach(), torch.from_numpy(value), 1e-9)
        out |= {f"{name}.{key}": value for key, value in found.items()}

    a = np.asarray(normal(rng, 40, 12), np.float64)
    b = np.asarray(normal(rng, 40, 7), np.float64) + 2 * a[:, :7]
    out |= {"cknna.a": a.astype(np.float32), "cknna.b": b.astype(np.float32)}
    a, b = (np.asarray(out[key], np.float64) for key in ("cknna.a", "cknna.b"))
    # The last is where 1e-6 is most of the denominator.
    cases = {"unit.10": (unit(a), unit(b), 10), "unit.3": (unit(a), unit(b), 3), "raw.10": (a, b, 10)}
    cases |= {"clipped.10": (unit(clipped(a, 0.95)), unit(clipped(b, 0.95)), 10), "self.5": (unit(a), unit(a), 5)}
    cases |= {"small.10": (a * 0.01, b * 0.01, 10)}
    for name, (one, other, topk) in cases.items():
        value = cknna(one, other, topk)
        close(f"cknna {name}", cknna_by_torch(one, other, topk), torch.tensor(value), 1e-10)
        print(f"cknna {name}: {value:.6f}")
        out[f"cknna.{name}"] = np.float64(value)
    assert abs(out["cknna.unit.10"] - out["cknna.clipped.10"]) > 1e-4, "clipping changes nothing here"
    assert out["cknna.small.10"] < 0.9 * out["cknna.raw.10"], "the 1e-6 changes nothing here"
    config = {"epochs": EPOCHS, "batch": BATCH, "lars": LARS, "adam": ADAM, "outlier_q": 0.95}
    write("probing.safetensors", config, out)
