"""vae.safetensors, vae_eps.safetensors: the autoencoder of diffusers."""

import copy

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from golden_file import close, normal, randomise, rounded, uniform, weights, write


def encode_decode(model, image, latent):
    with torch.no_grad():
        posterior = model.encode(image).latent_dist
        return posterior.mean, posterior.logvar, model.decode(latent).sample


def make_vae(file, seed, stream_scale):
    rng = np.random.default_rng(seed)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 12, 12],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()
    randomise(model, rng)
    with torch.no_grad():
        # log-variances wide enough to reach both ends of the clamp to [-30, 20]
        model.quant_conv.weight[4:] *= 6
        model.quant_conv.bias[4:] += torch.tensor([15.0, -10.0, 0.0, -25.0])
        # Every GroupNorm input becomes small, so that its eps (1e-6 here, 1e-5 elsewhere) decides the result.
        for name, p in model.named_parameters():
            into_stream = any(part in name for part in (".conv_in.", ".conv1.", ".conv2.", ".to_out."))
            between = name.endswith(("conv_shortcut.bias", "samplers.0.conv.bias"))
            if into_stream or between:
                p *= stream_scale
    image, latent = uniform(rng, -1, 1, 1, 3, 32, 24), normal(rng, 1, 4, 8, 6)
    exact = copy.deepcopy(model).double()
    mean, logvar, decoded = encode_decode(exact, image.double(), latent.double())
    for what, a, b in zip(("mean", "logvar", "decoded"), encode_decode(model, image, latent), (mean, logvar, decoded)):
        close(f"{file} {what} in f32", a, b, 2e-5)
    free = ((logvar > -30) & (logvar < 20)).double().mean().item()
    assert (logvar == 20).any() and (logvar == -30).any() and free > 0.5, f"{file}: {free:.2f} of logvar unclamped"
    if stream_scale != 1:
        for name, norm in exact.named_modules():
            if isinstance(norm, nn.GroupNorm):
                assert norm.eps == 1e-6, f"{file}: {name} has eps {norm.eps}"
                norm.eps = 1e-5
                wrong = encode_decode(exact, image.double(), latent.double())
                norm.eps = 1e-6
                seen = max((a - b).abs().max().item() for a, b in zip(wrong, (mean, logvar, decoded)))
                assert seen > 1e-3, f"{file}: eps 1e-5 in {name} would change the outputs by {seen:.2g} only"
    config = {k: v for k, v in model.config.items() if k != "_use_default_values"} | {"_class_name": "AutoencoderKL"}
    outputs = rounded(mean=mean, logvar=logvar, decoded=decoded)
    write(file, config, {"input": image, "latent": latent, **outputs, **weights(model)})


def vae():
    make_vae("vae.safetensors", 1, 1.0)
    make_vae("vae_eps.safetensors", 2, 3e-3)
