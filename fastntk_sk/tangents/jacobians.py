"""Features and per-sample Jacobians of a frozen network, and directional derivatives.

Reverse mode, one backward pass a readout row: for the features h(x) in R^d and a readout V in
R^{C x d}, row (i, c) of the Jacobian is d/dtheta [V_c . h(x_i; theta)] in R^p.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.func import functional_call

from ..backbones.recipes import import_quietly
from ..exceptions import JacobianError
from .subsets import Subset
from .taps import LEAVES, TANGENTS, BatchNormTap, PlainAttention, Tap, handed, make_tap, shared_copy

logger = logging.getLogger(__name__)

# torch has one level of forward-mode differentiation for all threads
_ONE_LEVEL = threading.Lock()


class TangentNetwork(nn.Module):
    """A frozen network that gives features, per-sample Jacobians and directional derivatives.

    The network maps a batch to features of shape (n, d), row by row, in eval mode. It is copied (its
    parameters are shared, never changed), and every module with trainable parameters is replaced by a
    tap. Batch norms are folded into the convolution below where that leaves the features unchanged.
    Every row of the Jacobian of two inputs, `probe`, is checked against its own plain gradient; where a
    module is not used the way its tap expects, the whole network becomes one tap.

    Any number of threads may use it at once.

    >>> import torch
    >>> from fastntk_sk.tangents.jacobians import TangentNetwork
    >>> from fastntk_sk.tangents.subsets import select
    >>> net = torch.nn.Linear(2, 1).requires_grad_(False).eval()
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> tangent = TangentNetwork(net, select(net, "weight"), probe=x)
    >>> tangent.jacobian(x, directions=torch.ones(1, 1))[1]
    tensor([[[1., 2.]],
    <BLANKLINE>
            [[3., 4.]]])
    """

    def __init__(self, net: nn.Module, subset: Subset, probe: Tensor) -> None:
        super().__init__()
        self.subset = subset
        check_rows_are_independent(net, probe, type(net).__name__)
        self._theta = {name: net.get_parameter(name) for name in subset.names}
        self._taps: dict[str, Tap] = {}
        if not subset.names:
            self.net = shared_copy(net)
            return
        import_quietly("torch._decomp.decompositions_for_jvp")
        problem = self._tapped(net, probe, _owners(subset.names))
        if problem:
            logger.info("one tap over the whole network, which is slower, because %s", problem)
            problem = self._tapped(net, probe, [""])
        if problem:
            raise JacobianError(
                f"Per-sample Jacobians of {type(net).__name__} are not its plain gradients: "
                f"{problem}. Choose another trainable subset, or the ladder, or plain torch modules."
            )

    def _tapped(self, net: nn.Module, probe: Tensor, owners: list[str]) -> str | None:
        """Put taps into a copy of the network, and return what is wrong with them."""
        self.net, self._taps = shared_copy(net), {}
        try:
            for owner in owners:
                self._install(owner)
            _fold_batch_norms(self.net, list(self._taps.values()), probe)
            return self._problem(net, probe)
        except Exception as error:  # a network raises anything where a tap is not what it expects
            return f"{type(error).__name__}: {error}"

    def _install(self, owner: str) -> None:
        prefix = f"{owner}." if owner else ""
        names = [n.removeprefix(prefix) for n in self.subset.names if n.startswith(prefix)]
        module = self.net.get_submodule(owner)
        tap = make_tap(module, names)
        self._taps[prefix] = tap
        places = [
            path for path, each in self.net.named_modules(remove_duplicate=False) if each is module
        ]
        for path in filter(None, places):  # a module may have several names
            self.net.set_submodule(path, tap)
        if not owner:
            self.net = tap

    def _disagreement(self, net: nn.Module, probe: Tensor) -> str | None:
        """Compare two rows with their own plain gradients by parameter, and with their derivatives."""
        parameters = {name: theta.detach().requires_grad_() for name, theta in self._theta.items()}
        draws, copied = torch.Generator().manual_seed(0), shared_copy(net)
        with torch.enable_grad():
            features = [functional_call(copied, parameters, (row[None],)) for row in probe[:2]]
        if not features[0].requires_grad:
            return "they have none, because it detaches, or runs in no_grad or inference_mode"
        readout = torch.randn(1, features[0].shape[1], generator=draws, dtype=torch.float32).to(probe)
        found = self.jacobian(probe[:2], readout)[1][:, 0]
        pushed = self.directional(probe[:2], found.sum(0))[1] @ readout[0]
        for row, feature in enumerate(features):
            expected = torch.autograd.grad(
                feature, list(parameters.values()), readout, allow_unused=True, materialize_grads=True
            )
            negligible = 1e-4 * torch.cat([g.flatten() for g in expected]).norm()
            for name, part in self.subset.split(found[row]).items():
                plain = expected[self.subset.names.index(name)]
                gap = float((part - plain).norm() / (plain.norm() + negligible + 1e-30))
                if not gap < 0.1:
                    return f"relative difference {gap:.1e} in {name}"
        pulled = found @ found.sum(0)
        gap = float((pushed - pulled).norm() / (pulled.norm() + 1e-30))
        return None if gap < 0.1 else f"relative difference {gap:.1e} in forward mode"

    def _problem(self, net: nn.Module, probe: Tensor) -> str | None:
        """Return what disagrees in double precision too: a kink that flips looks like a wrong tap."""
        problem = self._disagreement(net, probe)
        if problem is None or probe.dtype == torch.float64:
            return problem
        try:
            doubled = copy.deepcopy(net).double()
            twin = TangentNetwork(doubled, self.subset, probe.double())
        except Exception:  # also of a network or a device that takes no float64
            return problem
        return None if twin._taps.keys() == self._taps.keys() else problem

    def _by_tap(self, tensors: dict[str, Tensor]) -> dict[Tap, dict[str, Tensor]]:
        return {
            tap: {name: tensors[prefix + name] for name in tap.names}
            for prefix, tap in self._taps.items()
        }

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features of shape (n, d)."""
        return self.net(x)

    def jacobian(
        self,
        x: Tensor,
        directions: Tensor,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return features (n, d) and the Jacobian (n, C, k) of `directions @ features`, row by row.

        One forward and C backward passes over the batch; a frozen weight never gets a gradient.
        `project` is applied to the (n, p) rows of each direction, so that (n, C, p) is never stored. For
        one batch shape, a row's result does not depend on the other rows.
        """
        if not self._taps:
            features = self.features(x)
            return features, features.new_zeros(len(x), len(directions), 0)
        features, leaves = self._recorded(x)
        classes = []
        for c, row in enumerate(directions):
            flat = _pulled(features, leaves, row.expand_as(features), c + 1 < len(directions))
            classes.append(flat if project is None else project(flat))
        return features.detach(), torch.stack(classes, dim=1)

    def gradients(self, x: Tensor, cotangents: Tensor) -> Tensor:
        """Return the gradients (n, p) of `cotangents[i] @ features[i]`, in one backward pass."""
        if not self._taps:
            return cotangents.new_zeros(len(x), 0)
        return _pulled(*self._recorded(x), cotangents, keep=False)

    def _recorded(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the features with their graph, and the leaves that stand for every row's parameters."""
        leaves = {
            name: theta.detach().expand(len(x), *theta.shape).requires_grad_()
            for name, theta in self._theta.items()
        }
        # CUDA's own attention adds in any order in its backward pass
        attention = PlainAttention() if x.is_cuda else nullcontext()
        with handed(LEAVES, self._by_tap(leaves)), attention, torch.enable_grad():
            return self.net(x), list(leaves.values())

    @torch.no_grad()
    def directional(self, x: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and d/dt h(x; theta + t * displacement) at t = 0, each (n, d), in one pass."""
        if not self._taps:
            features = self.features(x)
            return features, torch.zeros_like(features)
        parts = self._by_tap(self.subset.split(displacement))
        with _ONE_LEVEL, handed(TANGENTS, parts), PlainAttention(), fwd.dual_level():
            features, derivative = fwd.unpack_dual(self.net(x))
        return features, torch.zeros_like(features) if derivative is None else derivative


def _pulled(features: Tensor, leaves: list[Tensor], cotangents: Tensor, keep: bool) -> Tensor:
    """Return the rows (n, p) of one backward pass; `keep` the graph for another."""
    rows = torch.autograd.grad(
        features, leaves, cotangents, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return torch.cat([row.flatten(1) for row in rows], dim=1)


@torch.no_grad()
def check_rows_are_independent(function: Callable[[Tensor], Tensor], probe: Tensor, name: str) -> None:
    """Raise JacobianError if what a function of batches gives for a row depends on the other rows."""
    among_others, alone = function(probe[:2])[0], function(probe[:1].expand_as(probe[:2]))[0]
    if (among_others - alone).norm() > 1e-2 * alone.norm():
        raise JacobianError(
            f"The features of {name} for one row depend on the other rows of its batch: its rows "
            "influence each other, or its output is random. Use a backbone whose norm layers have "
            "running statistics, in eval mode."
        )


def _owners(names: tuple[str, ...]) -> list[str]:
    """Return the outermost modules that own the named parameters."""
    owners = {name.rpartition(".")[0] for name in names}
    if "" in owners:
        return [""]
    return sorted(
        o for o in owners if not any(o.startswith(f"{other}.") for other in owners if other != o)
    )


@torch.no_grad()
def _fold_batch_norms(net: nn.Module, taps: list[Tap], probe: Tensor) -> None:
    """Move the scale of a batch norm into the convolution whose output it receives, if only it does."""
    made: dict[int, nn.Module] = {}
    pairs: list[tuple[nn.Conv2d, BatchNormTap]] = []
    calls: Counter[nn.Module] = Counter()
    keep: list[Tensor] = []

    def after_conv(module: nn.Module, _: object, out: Tensor) -> None:
        made[id(out)] = module
        keep.append(out)  # so that no id is used twice

    def before_norm(tap: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        conv = made.pop(id(inputs[0]), None)
        calls[tap] += 1
        if conv is not None and tap.foldable:
            pairs.append((conv, tap))  # type: ignore[arg-type]

    tapped = {id(m) for tap in taps for m in tap.modules()}
    hooks = [
        m.register_forward_hook(after_conv)
        for m in net.modules()
        if isinstance(m, nn.Conv2d) and "weight" in m._parameters and id(m) not in tapped
    ]
    hooks += [t.register_forward_pre_hook(before_norm) for t in taps if isinstance(t, BatchNormTap)]
    try:
        before = net(probe[:1])
    finally:
        for hook in hooks:
            hook.remove()
    undo = []
    for conv, tap in ((conv, tap) for conv, tap in pairs if calls[tap] == 1):
        undo.append((conv, conv.weight, conv.bias, tap, tap.slope))
        scale = tap.fold()
        conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
        if conv.bias is not None:
            conv.bias = nn.Parameter(conv.bias * scale, requires_grad=False)
    # a convolution with a second consumer, or one that is called twice, shows here
    if not torch.allclose(net(probe[:1]), before, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        for conv, weight, bias, tap, slope in undo:
            conv.weight, conv.bias = weight, bias
            tap.scale, tap.slope = slope / tap.slope, slope
