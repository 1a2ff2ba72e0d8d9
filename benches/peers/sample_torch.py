"""The samplers in PyTorch, over the network of step_torch.py: state in f64, the time grids of REPA, no guidance.

    python sample_torch.py RECORD --preset dupa-s/2 [--mode eager|compile] [--precision f32|bf16] [--sampler sde|ode]
                           [--device cpu|cuda:0] [--batch 8] [--steps 10] [--batches 3] [--threads N] [--check]

RECORD is what `pipeline bench sample --record` wrote: weights, noise, labels, and the latents that ours made of them by the ODE.
With --check they are sampled again and compared, and that is all. Prints one JSON object:

    error                                            relative distance of the latents to the record's
    images_per_s, seconds_a_batch {median, least, most}, peak_bytes, threads
    device_peak_bytes                                on a GPU, the most that PyTorch's allocator had given away

A batch is timed from its noise to latents on the host, as in ours.

Needs requirements-step.txt; --mode compile also a C++ compiler.
"""

import argparse
import json
import time

import torch
from safetensors.torch import load_file

from step_torch import Dupa, peak_bytes

LAST = 0.04


def ode(field, x, steps):
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=x.device)
    for t, following in zip(grid[:-1], grid[1:]):
        x = x + (following - t) * field(x, t)
    return x


def sde(field, x, steps):
    """Euler-Maruyama with w_t = 2 t, and a last step without noise."""

    def drift(x, t):
        return (2 - t) * field(x, t) + x

    grid = torch.linspace(1, LAST, steps, dtype=torch.float64, device=x.device)
    for t, following in zip(grid[:-1], grid[1:]):
        dt = following - t
        x = x + drift(x, t) * dt + torch.randn_like(x) * (2 * t * -dt).sqrt()
    return x - drift(x, grid[-1]) * grid[-1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("record")
    parser.add_argument("--preset", default="dupa-s/2")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--sampler", choices=["sde", "ode"], default="sde")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--threads", type=int, help="else as many as PyTorch takes")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    record = load_file(options.record)
    letter, patch = options.preset.removeprefix("dupa-").split("/")
    network = Dupa(letter, int(patch)).eval()
    network.load_state_dict({k.removeprefix("model."): v for k, v in record.items() if k.startswith("model.")}, strict=False)
    # What is aligned in training is not needed here, as in ours.
    network.projectors[0] = torch.nn.Identity()
    network.to(options.device)
    forward = torch.compile(network) if options.mode == "compile" else network
    autocast = torch.autocast(options.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16")

    def sampled(noise, labels, sampler):
        def field(x, t):
            with autocast:
                return forward(x.float(), t.float().expand(len(x)), labels)[0].double()

        with torch.no_grad():
            return sampler(field, noise, options.steps).float().cpu()

    answer = {"mode": options.mode, "precision": options.precision, "threads": torch.get_num_threads()}
    if options.check:
        found = sampled(record["noise"].to(options.device), record["labels"].to(options.device), ode)
        answer["error"] = float((found - record["latents"]).norm() / record["latents"].norm())
        print(json.dumps(answer))
        return
    labels = torch.arange(options.batch, device=options.device) % 1000
    del record
    times = []
    for _ in range(options.batches + 1):
        begun = time.perf_counter()
        noise = torch.randn(options.batch, 4, 32, 32, dtype=torch.float64, device=options.device)
        sampled(noise, labels, {"sde": sde, "ode": ode}[options.sampler])
        times.append(time.perf_counter() - begun)
    times = sorted(times[1:])
    median = times[len(times) // 2]
    answer |= {
        "images_per_s": options.batch / median,
        "seconds_a_batch": {"median": median, "least": times[0], "most": times[-1]},
        "peak_bytes": peak_bytes(),
    }
    if options.device.type == "cuda":
        answer["device_peak_bytes"] = torch.cuda.max_memory_allocated(options.device)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
