"""sampler.safetensors: ODE and SDE samplers on a closed-form velocity field."""

import numpy as np

from golden_file import write


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
