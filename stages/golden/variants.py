"""variants.safetensors: every model and objective that a configuration can name, on the inputs of dupa.safetensors.

Of each gradient two numbers are kept: its norm, and its product with a fixed direction.
"""

import copy

import numpy as np
import torch
from timm.layers import PatchEmbed
from torch import nn

from golden_file import close, normal, randomise, rounded, uniform, weights, write
from network import DecoupledSiT, FinalLayer

VIEWS, IMAGES, NULL = 2, 3, 5


class Variant(DecoupledSiT):
    """The golden network with what the paper leaves open; as SiT it has one stream of tokens and one embedder."""

    def __init__(self, backbone="ddt", decoder_label=False, decoder_position=True, encoder_position=True, layers=3, bias=True, patch=2):
        super().__init__(dim=16, depth=3, encoder_depth=2, heads=2, classes=NULL, grid=8 // patch, projector=[24, 12])
        self.backbone, self.decoder_label = backbone, decoder_label
        self.decoder_position, self.encoder_position = decoder_position, encoder_position
        widths = [16] + [24] * (layers - 1) + [12]
        mlp = [m for a, b in zip(widths, widths[1:]) for m in (nn.Linear(a, b, bias=bias), nn.SiLU())]
        self.projectors = nn.ModuleList([nn.Sequential(*mlp[:-1])])
        self.patch = patch
        if patch != 2:
            self.x_embedder, self.s_embedder = PatchEmbed(8, patch, 4, 16), PatchEmbed(8, patch, 4, 16)
            self.final_layer = FinalLayer(16, patch * patch * 4)
        if backbone == "sit":
            del self.s_embedder

    def forward(self, x, t, y):
        position, t = self.pos_embed.to(x.dtype), self.t_embedder(t)
        vector = t + self.y_embedder.embedding_table(y)
        z = (self.x_embedder if self.backbone == "sit" else self.s_embedder)(x) + (position if self.encoder_position else 0)
        for block in self.blocks[: self.encoder_depth]:
            z = block(z, vector)
        if self.backbone == "sit":
            h, c = z, vector
        else:
            h = self.x_embedder(x) + (position if self.decoder_position else 0)
            c = (vector if self.decoder_label else t).unsqueeze(1) + z
        for block in self.blocks[self.encoder_depth :]:
            h = block(h, c)
        patches = self.final_layer(h, c).unflatten(1, (self.grid, self.grid)).unflatten(-1, (self.patch, self.patch, 4))
        velocity = torch.einsum("nhwpqc->nchpwq", patches).flatten(4, 5).flatten(2, 3)
        return velocity, z, (t.unsqueeze(1) + z) * torch.sigmoid(t.unsqueeze(1) + z)


def cosine_term(projected, held, centre=False):
    """Image by image and token by token. `held` is what the earlier view of a pair is taken from."""
    views, images, tokens, _ = projected.shape
    if centre:
        projected, held = (x - x.mean(dim=(0, 1), keepdim=True) for x in (projected, held))
    terms = []
    for j in range(views):
        for i in range(j):
            for b in range(images):
                for n in range(tokens):
                    first, second = held[i, b, n], projected[j, b, n]
                    terms.append(first.dot(second) / (first.norm() * second.norm()))
    return -torch.stack(terms).mean()


def nt_xent_term(projected, held, temperature, pooled=False):
    """SimCLR's Eq. 1 as cross entropies with targets. `held` is what an anchor's candidates are taken from."""
    if pooled:
        projected, held = (x.mean(dim=2, keepdim=True) for x in (projected, held))
    views, images, tokens, _ = projected.shape
    terms = []
    for n in range(tokens):
        z, candidates = (nn.functional.normalize(x[:, :, n].reshape(views * images, -1), dim=-1) for x in (projected, held))
        logits = (z @ candidates.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
        for row in range(views * images):
            for view in range(views):
                target = view * images + row % images
                if target != row:
                    terms.append(nn.functional.cross_entropy(logits[row : row + 1], torch.tensor([target])))
    return torch.stack(terms).mean()


def dispersive_term(z, temperature):
    flat = z.flatten(1)
    half = nn.functional.pdist(flat).square() / flat.shape[1]
    everything = torch.cat([half, half, torch.zeros(len(flat), dtype=flat.dtype)])
    return torch.log(torch.exp(-everything / temperature).mean())


def loss_of(model, inputs, objective, constant=None):
    """The weighed sum, its terms, and the projected conditions; `constant` are those that no gradient goes through."""
    latents, t, noise, labels = inputs["latents"], inputs["t"], inputs["noise"], inputs["view_labels"]
    time = t[:, :, None, None, None]
    target = noise - latents
    velocity, z, modulation = model(((1 - time) * latents + time * noise).flatten(0, 1), t.flatten(), labels.flatten())
    velocity = velocity.unflatten(0, t.shape)
    terms = {"velocity": (velocity - target).square().mean()}
    aligned = modulation if objective.get("aligned") == "modulation" else z
    projected = model.projectors[0](aligned).unflatten(0, t.shape)
    held = projected
    if objective.get("constant"):
        held = projected.detach() if constant is None else constant
    kind = objective.get("alignment", "cosine")
    if kind == "cosine":
        terms["alignment"] = cosine_term(projected, held, objective.get("centre", False))
    elif kind == "nt-xent":
        terms["alignment"] = nt_xent_term(projected, held, 0.5, objective.get("pooled", False))
    if "dispersive" in objective:
        terms["dispersive"] = dispersive_term(z, 0.5)
    if "contrastive" in objective:
        terms["contrastive"] = (velocity - target[:, inputs["others"]]).square().mean()
    scale = 1.0
    if objective.get("sums"):
        scale = len(t) * latents[0, 0].numel()
    total = scale * (terms["velocity"] - objective.get("contrastive", 0) * terms.get("contrastive", torch.zeros(())))
    total = total + objective.get("lambda", 0.5) * terms.get("alignment", torch.zeros(()))
    total = total + objective.get("dispersive", 0) * terms.get("dispersive", torch.zeros(()))
    return total, terms, projected.detach()


CASES = {
    "sit": ({"backbone": "sit"}, {}),
    "label": ({"decoder_label": True}, {}),
    "no_position": ({"decoder_position": False}, {}),
    "projector": ({"layers": 2, "bias": False}, {}),
    "k4": ({}, {"views": 4}),
    "modulation": ({}, {"aligned": "modulation"}),
    "constant": ({}, {"constant": True}),
    "centre": ({}, {"centre": True}),
    "nt_xent": ({}, {"alignment": "nt-xent"}),
    "nt_xent_k3": ({}, {"alignment": "nt-xent", "views": 3}),
    "nt_xent_pooled": ({}, {"alignment": "nt-xent", "pooled": True}),
    "sums": ({}, {"sums": True}),
    "posterior": ({}, {"posterior": True}),
    "dispersive": ({"backbone": "sit"}, {"alignment": "none", "dispersive": 0.5, "views": 1}),
    "contrastive": ({"backbone": "sit"}, {"alignment": "none", "contrastive": 0.05, "views": 1}),
    "plain_sit": ({"backbone": "sit"}, {"alignment": "none", "views": 1}),
    "plain_ddt": ({}, {"alignment": "none", "views": 1}),
    "dual_path": ({}, {"alignment": "none"}),
    "patch4": ({"patch": 4}, {}),
    "no_encoder_position": ({"encoder_position": False}, {}),
    "k3": ({}, {"views": 3}),
    "lambda": ({}, {"lambda": 0.25}),
    "nt_xent_constant": ({}, {"alignment": "nt-xent", "constant": True}),
    "dispersive_ddt": ({}, {"dispersive": 0.5}),
    "contrastive_k2": ({}, {"contrastive": 0.05}),
}


def direction(parameter):
    """cos(0.7 i + 1) for value i of a parameter, row-major."""
    return torch.cos(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + 1).view(parameter.shape)


def variants():
    rng = np.random.default_rng(6)
    model = randomise(Variant(), rng)
    small = randomise(Variant(layers=2, bias=False), rng).projectors
    stored = {**weights(model), **{"small." + k: v for k, v in weights(small, "projectors.").items()}}
    all_inputs = {
        "latents": normal(rng, 4, IMAGES, 4, 8, 8),
        "t": uniform(rng, 0.02, 0.98, 4, IMAGES),
        "noise": normal(rng, 4, IMAGES, 4, 8, 8),
        "labels": torch.tensor([2, 4, 0]),
        "view_labels": torch.tensor([[2, 4, NULL], [2, 4, 0], [NULL, 4, 0], [2, NULL, NULL]]),
        "others": torch.tensor([2, 0, 1]),
    }
    patches = randomise(Variant(patch=4), rng).state_dict()
    patches = {k: v for k, v in patches.items() if k.startswith(("x_embedder", "s_embedder", "final_layer.linear"))}
    stored |= {"patch4." + k: v for k, v in patches.items()}
    outputs = {}
    for name, (shape, objective) in CASES.items():
        exact = Variant(**shape)
        own = {k: v for k, v in model.state_dict().items() if k in exact.state_dict()}
        if shape.get("layers") == 2:
            own = {k: v for k, v in own.items() if not k.startswith("projectors.")}
            own |= {"projectors." + k: v for k, v in small.state_dict().items()}
        exact.load_state_dict(own | (patches if shape.get("patch") else {}))
        exact = exact.double()
        views = objective.get("views", VIEWS)
        inputs = {k: (v.double() if v.is_floating_point() else v) for k, v in all_inputs.items()}
        for key in ("t", "noise", "view_labels"):
            inputs[key] = inputs[key][:views]
        inputs["latents"] = inputs["latents"][:views] if objective.get("posterior") else inputs["latents"][:1]
        total, terms, projected = loss_of(exact, inputs, objective)
        used = {n: p for n, p in exact.named_parameters() if objective.get("alignment") != "none" or "projectors" not in n}
        grads = dict(zip(used, torch.autograd.grad(total, list(used.values()))))
        # central difference along the directions
        h, ends = 1e-5, []
        for sign in (1, -1):
            moved = copy.deepcopy(exact)
            with torch.no_grad():
                for p in moved.parameters():
                    p += sign * h * direction(p)
            ends.append(loss_of(moved, inputs, objective, constant=projected)[0].item())
        slope = sum((g * direction(g)).sum() for g in grads.values())
        close(f"variants {name} directional derivative", torch.tensor((ends[0] - ends[1]) / (2 * h)), slope, 1e-5)
        outputs |= {f"{name}.total": total, **{f"{name}.{k}": v for k, v in terms.items()}}
        names = sorted(grads)
        rows = torch.stack([torch.stack([grads[n].norm(), (grads[n] * direction(grads[n])).sum()]) for n in names])
        # The last bias of a centred projector has no gradient; rounding leaves something, on every CPU something else.
        outputs[f"{name}.grads"] = torch.where(rows[:, :1] < 1e-12, torch.zeros_like(rows), rows)
    config = {"cases": {name: {**shape, **objective} for name, (shape, objective) in CASES.items()}}
    write("variants.safetensors", config, {**all_inputs, **rounded(**outputs), **stored})
