"""The metrics of torch-fidelity, for comparison with `pipeline evaluate --inception`.

    python evaluate_torch_fidelity.py --draw FOLDER              writes weights.pth and inception.safetensors, random and the same
    python evaluate_torch_fidelity.py SAMPLES REFERENCE FOLDER   measures two folders of pictures

Prints one JSON object: fid, is, precision, recall, peak_bytes, threads. Batches of 32; precision and recall in f32; IS in one part.
Needs requirements-evaluate.txt.
"""

import argparse
import json
import pathlib
import resource

import torch
from safetensors.torch import save_file
from torch_fidelity import calculate_metrics
from torchvision.models import inception_v3


def draw(folder):
    """He's deviation, or activations explode or vanish."""
    torch.manual_seed(0)
    state = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False).state_dict()
    for name, value in state.items():
        if value.ndim == 4:
            state[name] = torch.randn_like(value) * (2 / value[0].numel()) ** 0.5
        elif name == "fc.weight":
            state[name] = torch.randn_like(value) * 0.05
    torch.save(state, folder / "weights.pth")
    floats = {name: value.contiguous() for name, value in state.items() if value.is_floating_point()}
    save_file(floats, folder / "inception.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--draw", type=pathlib.Path)
    parser.add_argument("paths", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    if options.draw:
        draw(options.draw)
        return
    samples, reference, folder = options.paths
    # With few pictures its answer is not complete: the largest k of a distance is 3, and the smallest part is all of them.
    found = calculate_metrics(
        input1=str(samples),
        input2=str(reference),
        cuda=False,
        isc=True,
        fid=True,
        prc=True,
        isc_splits=1,
        batch_size=32,
        cache=False,
        verbose=False,
        feature_extractor_weights_path=str(folder / "weights.pth"),
        # The default of precision and recall is VGG.
        feature_extractor="inception-v3-compat",
        feature_layer_prc="2048",
    )
    names = {
        "fid": "frechet_inception_distance",
        "is": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }
    answer = {key: float(found[name]) for key, name in names.items()}
    answer["threads"] = torch.get_num_threads()
    answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
