"""samplers.safetensors: every sampler on a linear velocity field that depends on the label."""

import numpy as np
import torch

from golden_file import write

NULL = 2


def samplers():
    """v(x, t, y) = A_y x + (1 + t) b_y on six numbers; A and b of row 2 are those of the null class."""
    rng = np.random.default_rng(17)
    steps, w, interval = 9, 1.6, (0.1, 0.65)
    a = torch.from_numpy(0.4 * rng.standard_normal((3, 6, 6)))
    b = torch.from_numpy(rng.standard_normal((3, 6)))
    x1, labels = torch.from_numpy(rng.standard_normal((4, 6))), torch.tensor([1, 0, 0, 1])
    xi = torch.from_numpy(rng.standard_normal((steps - 1, 4, 6)))

    def one(x, t, y):
        return torch.stack([a[k] @ row + (1 + t) * b[k] for row, k in zip(x, y)])

    def field(x, t, gate):
        class_ = one(x, t, labels)
        if gate is None or not interval[0] <= gate <= interval[1]:
            return class_
        null = one(x, t, [NULL] * len(x))
        return null + w * (class_ - null)

    def ode(heun, guided, n=steps):
        x = x1.clone()
        for k in range(n):
            t, t_next = 1 - k / n, 1 - (k + 1) / n
            gate = t if guided else None
            v = field(x, t, gate)
            if heun and k < n - 1:
                v = 0.5 * v + 0.5 * field(x + (t_next - t) * v, t_next, gate)
            x = x + (t_next - t) * v
        return x

    def sde(factor, guided):
        """Eq. 1 as it is printed: the score from the velocity, w_t = factor * sigma_t."""
        x, grid = x1.clone(), [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]
        for k in range(steps):
            t, dt = grid[k], grid[k + 1] - grid[k]
            v = field(x, t, t if guided else None)
            score = -((1 - t) * v + x) / t
            x = x + (v - 0.5 * factor * t * score) * dt
            if k < steps - 1:
                x = x + (factor * t) ** 0.5 * abs(dt) ** 0.5 * xi[k]
        return x

    out = {}
    for guided, suffix in ((False, ""), (True, "_cfg")):
        out |= {f"euler{suffix}": ode(False, guided), f"heun{suffix}": ode(True, guided)}
        out |= {f"sde_2sigma{suffix}": sde(2, guided), f"sde_sigma{suffix}": sde(1, guided)}
    # Second computation: the solution of a linear equation, by the exponential of the matrix that has time as a state.
    # With z = (x, t, 1): dx = A x + b t + b, dt = 1.
    exact = []
    for row, k in zip(x1, labels):
        m = torch.zeros(8, 8, dtype=torch.float64)
        m[:6, :6], m[:6, 6], m[:6, 7], m[6, 7] = a[k], b[k], b[k], 1
        z = torch.cat([row, torch.ones(2, dtype=torch.float64)])
        exact.append((torch.matrix_exp(-m) @ z)[:6])
    exact = torch.stack(exact)
    for heun, low, high in ((False, 1.8, 2.2), (True, 3.5, 4.5)):
        errors = [(ode(heun, False, n) - exact).abs().max().item() for n in (100, 200)]
        assert low < errors[0] / errors[1] < high, f"samplers: heun = {heun} shows {errors}"
    config = {"steps": steps, "sde_t_last": 0.04, "guidance": w, "interval": interval, "null": NULL}
    config |= {"field": "A[y] x + (1 + t) b[y]"}
    write("samplers.safetensors", config, {"a": a, "b": b, "x1": x1, "labels": labels, "xi": xi, **out})
