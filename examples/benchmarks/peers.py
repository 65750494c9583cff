"""Per-sample Jacobians of C scores by this library and by others: the same work in the same run.

ResNet-18 at 96 px and its batch norms (p = 9,600), which every library can take; ViT-Tiny at 224 px and
10 prompt tokens (p = 1,920), which those can that take any function. Random weights. Each in a process
of its own. The ladder, which is the default here, is a row of its own: it needs no Jacobians. Needs
what the extra [benchmarks] installs; one that is not there is left out and named.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from _common import HERE, in_new_process, interleaved, linearized, picture, publish, resident, table
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from fastntk_sk.tangents.threads import kept_heap

IMAGES = 8
CASES = {
    "ResNet-18, norm": ("resnet18", "norm", 96),
    "ViT-Tiny, prompt": ("vit_tiny_patch16_224", "prompt", 224),
}
CLASSES = {"ResNet-18, norm": (2, 10, 50), "ViT-Tiny, prompt": (2, 10)}
LIMIT = 20.0  # seconds of one call beyond which it is not repeated


class Problem:
    """A network with a fixed readout, the parameters that are asked about, and images."""

    def __init__(self, case: str, n_classes: int) -> None:
        self.source, trainable, self.pixels = CASES[case]
        self.model = linearized(
            self.source,
            n_classes=n_classes,
            trainable=trainable,
            n_components=16,
            pretrained=False,
            pixels=self.pixels,
            batch_size=IMAGES,
        )
        self.x = self.model.backbone.synthetic(IMAGES, 0, None, torch.float32)
        V = self.model.directions
        self.net = nn.Sequential(self.model.backbone.net, nn.Linear(V.shape[1], n_classes, bias=False))
        self.net[1].weight.data.copy_(V)
        self.net.eval().requires_grad_(False)
        self.names = [f"0.{name}" for name in self.model.tangent.subset.names]
        self.shape = IMAGES, n_classes, -1

    def trained(self) -> list[nn.Parameter]:
        """Let autograd see the subset, and return it."""
        return [self.net.get_parameter(name).requires_grad_(True) for name in self.names]

    def values(self) -> dict[str, Tensor]:
        return {name: self.net.get_parameter(name).detach() for name in self.names}

    def labels(self) -> Tensor:
        return torch.zeros(IMAGES, dtype=torch.long)


def ours(p: Problem) -> Callable[[], Tensor]:
    return lambda: p.model.tangent.jacobian(p.x, p.model.directions)[1]


def ladder(p: Problem) -> Callable[[], Tensor]:
    """Features of the default ladder, in place of Jacobians, whatever the number of classes."""
    model = linearized(
        p.source,
        trainable="ladder",
        n_components=4096,
        pretrained=False,
        pixels=p.pixels,
        batch_size=IMAGES,
    )
    return lambda: model.passes(p.x)[0]


def _torch_func(p: Problem, chunk: int | None) -> Callable[[], Tensor]:
    def scores(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(p.net, values, (image[None],))[0]

    def jacobian() -> Tensor:
        parts = vmap(jacrev(scores), in_dims=(None, 0), chunk_size=chunk)(p.values(), p.x)
        return torch.cat([parts[name].reshape(p.shape) for name in p.names], 2)

    return jacobian


def torch_func(p: Problem) -> Callable[[], Tensor]:
    return _torch_func(p, None)


def torch_func_by_4(p: Problem) -> Callable[[], Tensor]:
    return _torch_func(p, 4)


def loop(p: Problem) -> Callable[[], Tensor]:
    leaves = p.trained()

    def jacobian() -> Tensor:
        rows = []
        for image in p.x:
            for score in p.net(image[None])[0]:
                grads = torch.autograd.grad(score, leaves, retain_graph=True)
                rows.append(torch.cat([grad.flatten() for grad in grads]))
        return torch.stack(rows).view(p.shape)

    return jacobian


def nngeometry(p: Problem) -> Callable[[], Tensor]:
    from nngeometry.jacobian import Jacobian
    from nngeometry.layercollection import LayerCollection

    layers = LayerCollection()
    for module in p.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            layers.add_layer_from_model(p.net, module)
    if not layers.layers:
        raise NotImplementedError("knows layers, not prompts")
    p.trained()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(p.x, p.labels()), batch_size=IMAGES
    )
    return lambda: (
        Jacobian(p.net, loader, lambda *batch: p.net(batch[0]), layer_collection=layers)
        .to_torch()
        .transpose(0, 1)
    )


def curvlinops(p: Problem) -> Callable[[], Tensor]:
    from curvlinops import TransposedJacobianLinearOperator

    operator = TransposedJacobianLinearOperator(
        p.net, p.trained(), [(p.x, p.labels())], check_deterministic=False
    )
    rows = torch.eye(IMAGES * p.shape[1])
    return lambda: (operator @ rows).T.reshape(p.shape)


def laplace(p: Problem) -> Callable[[], Tensor]:
    from laplace.curvature import GGNInterface

    p.trained()
    interface = GGNInterface(p.net, "classification")

    def jacobian() -> Tensor:
        return torch.cat([interface.jacobians(image[None])[0] for image in p.x]).detach()

    return jacobian


def trak(p: Problem) -> Callable[[], Tensor]:
    from trak.gradient_computers import FunctionalGradientComputer
    from trak.modelout_functions import AbstractModelOutput

    class Score(AbstractModelOutput):
        which = 0

        def __init__(self) -> None:
            super().__init__()

        def get_output(self, model, weights, buffers, image, label):
            out = functional_call(model, (weights, buffers), (image[None],))
            return out[0, Score.which]

        def get_out_to_loss_grad(self, *arguments):
            raise NotImplementedError

    computer = FunctionalGradientComputer(
        p.net, Score(), grad_dim=1, dtype=torch.float32, device="cpu", grad_wrt=p.names
    )
    computer.func_weights = p.values()  # the subset alone, not the gradient of every weight

    def jacobian() -> Tensor:
        rows = []
        for Score.which in range(p.shape[1]):
            grads = computer.compute_per_sample_grad((p.x, p.labels()))
            rows.append(torch.cat([grads[name].reshape(IMAGES, -1) for name in p.names], 1))
        return torch.stack(rows, 1)

    return jacobian


def opacus(p: Problem) -> Callable[[], Tensor]:
    from opacus import GradSampleModule

    p.trained()
    wrapped = GradSampleModule(p.net, strict=False, loss_reduction="sum")

    def jacobian() -> Tensor:
        rows = []
        for which in range(p.shape[1]):
            wrapped.zero_grad(set_to_none=True)
            wrapped(p.x)[:, which].sum().backward()
            samples = [p.net.get_parameter(name).grad_sample for name in p.names]
            rows.append(torch.cat([sample.reshape(IMAGES, -1) for sample in samples], 1))
        return torch.stack(rows, 1)

    return jacobian


PEERS = {
    "this library": (ours, "fastntk_sk"),
    "this library, ladder": (ladder, "fastntk_sk"),
    "torch.func, vmap(jacrev)": (torch_func, "torch"),
    "torch.func, 4 images at a time": (torch_func_by_4, "torch"),
    "loop of autograd.grad": (loop, "torch"),
    "nngeometry": (nngeometry, "nngeometry"),
    "curvlinops": (curvlinops, "curvlinops-for-pytorch"),
    "laplace-torch": (laplace, "laplace-torch"),
    "trak": (trak, "traker"),
    "opacus": (opacus, "opacus"),
}


def measure(peer: str, case: str, n_classes: int) -> dict[str, object]:
    """Return seconds, growth of the process while it ran, and the difference to a plain loop."""
    problem = Problem(case, n_classes)
    before = resident("VmRSS")
    try:
        call = PEERS[peer][0](problem)
        found = call()
    except Exception as error:  # a library may refuse a network in any way: the table says so
        return {"refused": f"{type(error).__name__}: {error}"[:120].replace("\n", " ")}
    peak = resident("VmHWM") - before
    gap = None
    if peer != "this library, ladder":
        expected = (loop if n_classes <= 10 else ours)(Problem(case, n_classes))()
        gaps = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
        gap = float(gaps.median())
    with kept_heap():  # as in the estimator's passes; for all alike
        seconds = interleaved({peer: call}, repeats=5)[peer]
    return {"seconds": seconds, "peak": peak, "gap": gap}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    rows, times, notes = [], {}, []
    for case, numbers in CLASSES.items():
        for n_classes in numbers:
            unit = 0.0
            for peer, (_, package) in PEERS.items():
                if installed(package) is None:
                    notes.append(f"{peer} is not installed")
                    continue
                fewer, known = max(times.get((case, peer), {0: 0.0}).items())
                if known * n_classes > LIMIT * fewer > 0:
                    rows.append([case, n_classes, peer, f"left out above {LIMIT:.0f} s", "", "", ""])
                    continue
                try:
                    found, _ = in_new_process(
                        "peers", "measure", peer=peer, case=case, n_classes=n_classes
                    )
                except subprocess.CalledProcessError as error:
                    found = {"refused": f"the process ended with {error.returncode}"}
                print(case, n_classes, peer, found, flush=True)
                if "refused" in found:
                    if (case, peer) not in times:
                        notes.append(f"{peer} on {case}: {found['refused']}")
                    continue
                times.setdefault((case, peer), {})[n_classes] = found["seconds"]
                unit = unit or found["seconds"]
                rows.append(
                    [
                        case,
                        n_classes,
                        peer + (f" {installed(package)}" if package != "torch" else ""),
                        f"{found['seconds']:.3f}",
                        f"{found['seconds'] / unit:.1f}",
                        f"{found['peak'] / 2**20:.0f}",
                        "" if found["gap"] is None else f"{found['gap']:.0e}",
                    ]
                )
            report(rows, times, notes)


def report(rows: list, times: dict, notes: list[str]) -> None:
    header = ["network", "classes", "library", "seconds", "times ours", "MiB", "difference"]
    quicker = [
        f"{peer} on {case}, {n} classes"
        for (case, peer), found in times.items()
        for n, seconds in found.items()
        if not peer.startswith("this library") and seconds < times[case, "this library"][n]
    ]
    text = table(header, rows) + (
        f"\n\nQuicker than ours: {'; '.join(quicker) or 'none'}. {IMAGES} images; medians of 5 calls "
        "within `kept_heap`; MiB is what the process grew by at a first call before. The difference "
        "is to a plain loop (to ours beyond 10 classes), median over images. The ladder gives "
        "features in place of Jacobians, at the cost of one forward pass whatever the number of "
        "classes; in the table of accuracies above it is level with the tangents or better."
    )
    if notes:
        text += "\n\nLeft out: " + "; ".join(dict.fromkeys(notes)) + "."
    draw(times)
    publish("peers", "![Seconds over classes, by library](peers.svg)\n\n" + text)


def draw(times: dict[tuple[str, str], dict[int, float]]) -> None:
    """Draw seconds over classes, a library in one colour."""
    libraries = list(dict.fromkeys(peer for _, peer in times))
    with picture(HERE / "peers.svg", 1, len(CASES), figsize=(11, 4.5)) as axes:
        for ax, case in zip(axes[0], CASES, strict=True):
            for number, peer in enumerate(libraries):
                n_classes = sorted(found := times.get((case, peer), {}))
                ax.plot(
                    n_classes,
                    [found[n] for n in n_classes],
                    "o-",
                    label=peer,
                    lw=3 if peer.startswith("this library") else 1,
                    color=f"C{number}",
                )
            ax.set(xscale="log", yscale="log", title=case)
            ax.set(xlabel="classes", ylabel=f"seconds, {IMAGES} images")
            n_classes = sorted({n for (of, _), found in times.items() if of == case for n in found})
            ax.set_xticks(n_classes, n_classes)
            ax.xaxis.minorticks_off()
        axes[0, 0].figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")


if __name__ == "__main__":
    main()
