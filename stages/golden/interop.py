"""Load what `cargo run --example interop -- FOLDER` wrote with PyTorch, strictly, and compare the forward passes.

    python interop.py FOLDER

FOLDER/NAME.safetensors and NAME.pt hold the same network as `pipeline export-weights` writes it,
NAME-answer.safetensors inputs and what our network answers, NAME.json its sizes.
"""

import json
import pathlib
import sys

import safetensors.torch
import torch

from network import DecoupledSiT, SiT


def network(sizes):
    common = {key: sizes[key] for key in ("dim", "depth", "heads", "classes", "grid")}
    if sizes["backbone"] == "sit":
        return SiT(**common, channels=4, projectors=[sizes["projector"]])
    model = DecoupledSiT(**common, encoder_depth=sizes["encoder_depth"], projector=sizes["projector"])
    # A constant of this class, and a tensor of the file: SiT's is compared by its own strict loading.
    position = model.pos_embed.float().unsqueeze(0)
    del model.pos_embed
    model.pos_embed = torch.nn.Parameter(position, requires_grad=False)
    return model


def main(folder):
    names = sorted(path.stem for path in folder.glob("*.json"))
    assert names, f"{folder} holds nothing to compare"
    for name in names:
        model = network(json.loads((folder / f"{name}.json").read_text()))
        position = model.pos_embed.detach().clone()
        files = {
            "safetensors": safetensors.torch.load_file(folder / f"{name}.safetensors"),
            "pt": torch.load(folder / f"{name}.pt", weights_only=True, mmap=True),
            "pt, copied": torch.load(folder / f"{name}.pt", weights_only=True),
        }
        answer = safetensors.torch.load_file(folder / f"{name}-answer.safetensors")
        for form, state in files.items():
            model.load_state_dict(state, strict=True)
            assert (model.pos_embed - position).abs().max() < 1e-6, f"{name}, {form}: another position embedding"
            with torch.no_grad():
                out = model.double()(answer["x"].double(), answer["t"], answer["labels"])
            velocity = out[0] if isinstance(out, tuple) else out
            error = ((velocity - answer["velocity"]).norm() / velocity.norm()).item()
            assert error < 1e-5, f"{name}, {form}: relative error {error:.2e}"
            print(f"{name}, {form}: {len(state)} tensors, relative error {error:.1e}")
            model.float()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
