"""inception.safetensors: the features of torch-fidelity's Inception; metrics.safetensors: the five numbers from given features."""

import contextlib
import pathlib
import re
import tempfile

import numpy as np
import scipy.linalg
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchvision.models import inception_v3

from safetensors.torch import load_file

from golden_file import FOLDER, close, write

STEP, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def outputs(seed, count):
    """The first `count` outputs of SplitMix64: 24 million weights cannot be committed, but both sides can draw them."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(STEP)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def unit(seed, shape):
    """U[0, 1) in steps of 2^-24, f32."""
    bits = outputs(seed, int(np.prod(shape))) >> np.uint64(40)
    return (bits.astype(np.float32) * np.float32(2**-24)).reshape(shape)


def weights():
    """Tensor number j in the order of the names is drawn with seed j. He's deviation, or activations explode or vanish."""
    shapes = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False).state_dict()
    names = sorted(name for name in shapes if not name.endswith("num_batches_tracked"))
    made = {}
    for j, name in enumerate(names):
        shape = tuple(shapes[name].shape)
        u = unit(j, shape)
        if len(shape) == 4:
            u = (u - np.float32(0.5)) * np.float32(np.sqrt(24.0 / np.prod(shape[1:])))
        elif name.endswith("bn.weight"):
            u = np.float32(0.9) + np.float32(0.2) * u
        elif name.endswith("running_var"):
            u = np.float32(0.5) + u
        elif name == "fc.weight":
            u = (u - np.float32(0.5)) * np.float32(0.25)
        else:
            u = (u - np.float32(0.5)) * np.float32(0.2)
        made[name] = torch.from_numpy(u)
    assert len(made) == 472
    return made


def pictures(seed, count, height, width):
    """u8 [count, height, width, 3]: noise of 128 levels on a colour of each picture."""
    noise = (outputs(seed, count * height * width * 3) >> np.uint64(57)).astype(np.uint8).reshape(count, height, width, 3)
    colour = (outputs(seed + 1, count * 3) >> np.uint64(57)).astype(np.uint8).reshape(count, 1, 1, 3)
    return noise + colour


def extractor(dtype):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights.pth"
        torch.save(weights(), path)
        network = FeatureExtractorInceptionV3(
            "golden", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    # Its own switch to f64 is a switch to f32 (torch-fidelity 0.4.0, helpers.py).
    network.to(dtype).feature_extractor_internal_dtype = dtype
    return network


def features(network, pixels):
    kept = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda _m, _i, out: kept.append(out.clone()))
    with torch.no_grad():
        pool, logits = network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    hook.remove()
    # NHWC, as TensorFlow's graph gives it.
    spatial = kept[0][:, :7].permute(0, 2, 3, 1).reshape(len(pixels), -1)
    return {"pool": pool.float(), "logits": logits.float(), "spatial": spatial.float()}


def converted():
    """What the lines of docs/evaluation.md make of a file as pytorch-fid's: a pickle of before PyTorch 1.6, batch counts included."""
    lines = re.search(r"```python\n(.*?)```", (FOLDER.parent.parent / "docs" / "evaluation.md").read_text(), re.DOTALL)[1]
    state = weights()
    counts = {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in state if "running_mean" in name}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        torch.save(state | counts, "pt_inception-2015-12-05-6726825d.pth", _use_new_zipfile_serialization=False)
        exec(lines, {})
        return load_file("inception.safetensors")


def inception():
    made, drawn = converted(), weights()
    assert made.keys() == drawn.keys() and all(torch.equal(made[name], drawn[name]) for name in drawn)
    exact, rounded = extractor(torch.float64), extractor(torch.float32)
    out = {}
    for name, seed, shape in (("small", 1000, (3, 40, 56)), ("large", 2000, (1, 320, 310))):
        pixels = pictures(seed, *shape)
        again = features(rounded, pixels)
        for key, answer in features(exact, pixels).items():
            close(f"inception {name} {key}, f32 against f64", again[key], answer, 1e-4)
            out[f"{name}.{key}"] = answer
    write("inception.safetensors", {"weights": "SplitMix64, see evaluation.py"}, out)


def adm_distances(u, v):
    """Squared distances with the roundings of the ADM evaluator's f16: the norms of `u`, the rows, are the first to be added."""
    u, v = u.half(), v.half()
    norm = lambda x: (x * x).float().sum(1).half()
    products = (u.float() @ v.float().T).half()
    return ((norm(u)[:, None] - 2 * products) + norm(v)[None, :]).clamp_min(0).float()


def adm_precision_recall(samples, reference):
    """Both numbers of one matrix, whose rows are the reference: the evaluator's first features are those of the reference."""
    of_samples, of_reference = (adm_distances(x, x).sort(dim=1).values[:, 3] for x in (samples, reference))
    between = adm_distances(reference, samples)
    precision = (between <= of_reference[:, None]).any(dim=0).double().mean()
    recall = (between <= of_samples[None, :]).any(dim=1).double().mean()
    return float(precision), float(recall)


def metrics():
    rng = np.random.default_rng(11)
    mix = rng.standard_normal((2, 24, 24)) / 5
    draw = lambda n, k: torch.from_numpy(np.abs(rng.standard_normal((n, 24)) @ mix[k] + 0.3 * k).astype(np.float32))
    out = {"samples": draw(300, 0), "reference": draw(260, 1), "few": draw(15, 0)}
    out["logits"] = torch.from_numpy((3 * rng.standard_normal((300, 20))).astype(np.float32))
    for name in ("samples", "few"):
        one, other = (fid_features_to_statistics(out[key].double()) for key in (name, "reference"))
        fid = fid_statistics_to_metric(one, other, False)["frechet_inception_distance"]
        # The ADM evaluator's own way.
        root = scipy.linalg.sqrtm(one["sigma"] @ other["sigma"]).real
        means = one["mu"] - other["mu"]
        again = means @ means + np.trace(one["sigma"]) + np.trace(other["sigma"]) - 2 * np.trace(root)
        close(f"FID of {name}, sqrtm against eigenvalues", torch.tensor(again), torch.tensor(fid), 1e-6 if name == "samples" else 1e-4)
        out[f"fid.{name}"] = np.float64(fid)
    score = [isc_features_to_metric(out["logits"], splits, shuffle=False)["inception_score_mean"] for splits in (1, 3)]
    out["is.1"], out["is.3"] = np.float64(score[0]), np.float64(score[1])
    # Squared lengths on both sides of 256, as those of Inception's features: that is where f16 rounds a difference of them.
    shifted = [out[key] + 2.5 for key in ("samples", "reference")]
    exact = calculate_precision_recall_full(*shifted, 3, 10000)
    rounded = adm_precision_recall(*shifted)
    out["pr.f32"], out["pr.f16"] = np.array(exact, np.float64), np.array(rounded, np.float64)
    assert exact != rounded, "f16 changes nothing here: the case shows nothing"
    turned = adm_precision_recall(*shifted[::-1])[::-1]
    assert turned != rounded, "which of the two sets has the rows changes nothing here: the case does not show it"
    out |= {f"run.{key}": np.float64(value) for key, value in run().items()}
    write("metrics.safetensors", {"k": 3}, out)


def run():
    """All five numbers, from pictures on."""
    network = extractor(torch.float64)
    samples, reference = features(network, pictures(3000, 12, 40, 56)), features(network, pictures(4000, 10, 40, 56))
    found = {}
    for name, key in (("fid", "pool"), ("sfid", "spatial")):
        one, other = (fid_features_to_statistics(each[key].double()) for each in (samples, reference))
        found[name] = fid_statistics_to_metric(one, other, False)["frechet_inception_distance"]
    found["is"] = isc_features_to_metric(samples["logits"], 1, shuffle=False)["inception_score_mean"]
    found["precision"], found["recall"] = adm_precision_recall(samples["pool"], reference["pool"])
    print(found)
    return found
