"""weights_*.pt as SiT and REPA save them, and weights.safetensors with what their networks answer."""

import argparse
import copy
import io
import zipfile

import numpy as np
import torch
from torch import nn

import golden_file
from golden_file import close, normal, randomise, rounded, uniform, write
from network import SiT, position_embedding

LIMIT = 100_000  # bytes a .pt may have


def random_network(rng, **sizes):
    """Every weight random but the position embedding, which is fixed."""
    model = SiT(**sizes)
    position = model.pos_embed.detach().clone()
    randomise(model, rng)
    with torch.no_grad():
        model.pos_embed.copy_(position)
    return model


def exact(model, state):
    """The answer in f64 of the weights that are stored, with the position embedding as it was before rounding."""
    model = copy.deepcopy(model)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()} | {"pos_embed": model.pos_embed})
    return model.double()


def save(name, value, **options):
    """torch.save to this folder; the bytes must repeat, and every tensor come back."""
    path = golden_file.FOLDER / name
    buffers = [io.BytesIO(), io.BytesIO()]
    for buffer in buffers:
        torch.save(value, buffer, **options)
    assert buffers[0].getvalue() == buffers[1].getvalue(), f"{name}: other bytes each time"
    path.write_bytes(buffers[0].getvalue())
    assert zipfile.ZipFile(path).testzip() is None
    size = path.stat().st_size
    assert size <= LIMIT, f"{name}: {size} bytes"
    print(f"{name:24} {size:7} bytes")


def checkpoints():
    rng = np.random.default_rng(7)
    tensors, config = {}, {}

    def case(name, model, states, sizes):
        x, y = normal(rng, 5, 4, 8, 8), torch.tensor([0, 4, 2, 5, 1])
        # 1 - t is exact in f32
        t = torch.cat([torch.tensor([0.0, 1.0]), (uniform(rng, 0, 1, 3) * 4096).round() / 4096])
        tensors.update({f"{name}.x": x, f"{name}.t": t, f"{name}.labels": y})
        for key, state in states.items():
            network = exact(model, state)
            velocity = network(x.double(), t, y)
            single = copy.deepcopy(network).float()
            close(f"{name} {key} in f32", single(x, t, y), velocity, 2e-5)
            tensors.update(rounded(**{f"{name}.{key}": velocity}))
        config[name] = sizes

    # SiT: 8 channels, its own direction of time, a dictionary with an optimiser and the arguments of the command
    sizes = {"dim": 8, "depth": 2, "heads": 2, "classes": 5, "grid": 4, "channels": 8}
    model, ema = random_network(rng, **sizes), random_network(rng, **sizes)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    model.final_layer.linear.bias.grad = normal(rng, *model.final_layer.linear.bias.shape)
    opt.step()
    args = argparse.Namespace(model="SiT-XXS/2", image_size=64, num_classes=5, cfg_scale=4.0, data_path=None)
    states = {"model": model.state_dict(), "ema": ema.state_dict()}
    save("weights_sit.pt", {**states, "opt": opt.state_dict(), "args": args})
    case("sit", model, states, sizes)

    # REPA: 4 channels, two projectors, a bare state dict
    sizes = {"dim": 12, "depth": 2, "heads": 3, "classes": 5, "grid": 4, "channels": 4}
    sizes["projectors"] = [[16, 8], [16, 10]]
    model = random_network(rng, **sizes)
    save("weights_repa.pt", model.state_dict())
    case("repa", model, {"bare": model.state_dict()}, sizes)

    # f16 in protocol 4, behind DistributedDataParallel and torch.compile, one matrix stored by columns, one counter
    sizes = {"dim": 12, "depth": 2, "heads": 3, "classes": 5, "grid": 4, "channels": 4}
    model = random_network(rng, **sizes)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    by_columns = state["blocks.1.mlp.fc1.weight"].T.contiguous().T
    assert by_columns.stride() == (1, 48)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    wrapped["module._orig_mod.blocks.1.mlp.fc1.weight"] = by_columns
    wrapped["module._orig_mod.steps"] = torch.tensor(400_000)
    save("weights_f16.pt", {"ema": wrapped, "steps": 400_000}, pickle_protocol=4)
    case("f16", model, {"ema": state}, sizes)

    # bf16 in protocol 5: parameters, all views of one buffer
    model = random_network(rng, **sizes)
    names, values = zip(*((name, tensor.bfloat16()) for name, tensor in model.state_dict().items()))
    buffer, at, state = torch.cat([value.flatten() for value in values]), 0, {}
    for name, value in zip(names, values):
        state[name] = nn.Parameter(buffer[at : at + value.numel()].view(value.shape), requires_grad=False)
        at += value.numel()
    save("weights_bf16.pt", {"model": state, "args": args}, pickle_protocol=5)
    case("bf16", model, {"model": state}, sizes)

    close("weights: SiT's position embedding", ema.pos_embed[0], position_embedding(8, 4), 1e-7)
    write("weights.safetensors", config, tensors)
