"""Per-sample Jacobians and predictions in units of one forward pass, against torch.func and a loop.

lite0 with its ImageNet weights, norm subset (p = 42,016), 96 px, 10 classes, 32 images. The features of
a ladder stand beside them: it needs no Jacobian.
"""

from __future__ import annotations

import torch
from _common import interleaved, linearized, publish, table
from torch.func import functional_call, jacrev, vmap

from fastntk_sk.backbones.loading import load_backbone
from fastntk_sk.tangents.jacobians import TangentNetwork
from fastntk_sk.tangents.linearize import draw_directions
from fastntk_sk.tangents.subsets import select

CLASSES, BATCH, PIXELS = 10, 32, 96
CHUNKS = (
    (None, None),
    (16, None),
    (8, None),
    (4, None),
    (2, None),
    (1, None),
    (None, 1),
    (8, 1),
    (None, 5),
)


def main() -> None:
    backbone = load_backbone("tf_efficientnet_lite0", image_size=PIXELS)
    net, subset = backbone.net, select(backbone.net, "norm")
    x = backbone.synthetic(BATCH, 0, None, torch.float32)
    V = draw_directions(0, CLASSES, 1280).float()
    tangent = TangentNetwork(net, subset, x[:2])
    displacement = torch.randn(subset.size, generator=torch.Generator().manual_seed(0)) / 100
    ladder = linearized(
        "tf_efficientnet_lite0", trainable="ladder", pixels=PIXELS, n_components=4096
    ).ladder
    theta = {name: net.get_parameter(name).detach() for name in subset.names}

    def scores(parameters, image):
        return V @ functional_call(net, parameters, (image[None],))[0]

    def flat(parts, n):
        return torch.cat([parts[name].reshape(n, CLASSES, -1) for name in subset.names], dim=2)

    def by_vmap(images, rows):
        per_image = vmap(jacrev(scores, chunk_size=rows), in_dims=(None, 0), chunk_size=images)
        return flat(per_image(theta, x), BATCH)

    def by_loop():
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        rows = []
        for image in x:
            for score in scores(leaves, image):
                grads = torch.autograd.grad(score, list(leaves.values()), retain_graph=True)
                rows.append(torch.cat([g.flatten() for g in grads]))
        return torch.stack(rows).view(BATCH, CLASSES, -1)

    @torch.no_grad()
    def forward(network=net):
        return network(x)

    ours = tangent.jacobian(x, V)[1]
    reference = by_loop()
    image_gaps = (ours - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    agreement = f"{float(image_gaps.median()):.0e}"  # by image: a ReLU6 kink flips in one or two
    calls = {
        "forward pass": forward,
        "features of a ladder, for all classes": lambda: forward(ladder),
        "this library: 1 forward, 10 batched backward": lambda: tangent.jacobian(x, V),
        "loop of autograd.grad over images and classes": by_loop,
        "prediction, linear (one directional derivative)": lambda: tangent.directional(x, displacement),
    }
    chunked = {}
    for images, rows in CHUNKS:
        name = f"torch.func vmap(jacrev), {images or BATCH} images, {rows or CLASSES} classes at a time"
        chunked[name] = lambda images=images, rows=rows: by_vmap(images, rows)
    quick = interleaved(chunked, repeats=1)
    best = min(quick, key=quick.__getitem__)
    print(quick, flush=True)
    found = f"{best} (best of {len(CHUNKS)} chunkings)"
    seconds = interleaved(calls | {found: chunked[best]}, repeats=7)
    others = found, "loop of autograd.grad over images and classes"
    unit, mine = seconds["forward pass"], seconds["this library: 1 forward, 10 batched backward"]
    lines = [
        [name, f"{s:.3f}", f"{s / unit:.1f}", "" if s in (unit, mine) else f"{s / mine:.1f}"]
        for name, s in sorted(seconds.items(), key=lambda item: item[1])
    ]
    quicker = [f"{name} ({s:.3f} s)" for name, s in seconds.items() if s < mine and name in others]
    slower = f"Quicker than ours: {', '.join(quicker)}. " if quicker else ""
    header = ["32 images, 96 px, 10 classes", "seconds", "forward passes", "times ours"]
    publish(
        "jacobian_speed",
        table(header, lines)
        + f"\n\n{slower}Medians of 7 turns; the floor for {CLASSES} classes is {CLASSES + 1} forward "
        f"passes. Median relative difference by image between ours and the loop: {agreement}.",
    )


if __name__ == "__main__":
    main()
