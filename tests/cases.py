"""The table of networks and subsets that Jacobians are checked on, and how estimators are compared."""

import numpy as np
import torch
from torch import nn

# name, timm architecture, arguments, image side, trainable
JACOBIANS = [
    ("lite0-norm", "tf_efficientnet_lite0", {}, 32, "norm"),
    ("lite0-pattern", "tf_efficientnet_lite0", {}, 32, ["bn2.*", "blocks.6.0.conv_pwl.weight"]),
    ("resnet-full", "test_resnet", {}, 32, "full"),
    ("vit-norm", "vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, 32, "norm"),
    ("vit-prompt", "vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, 32, "prompt"),
    ("vit-deep", "vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, 32, "prompt-deep"),
    ("vit-attention", "vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, 32, "*attn.qkv*"),
    ("vit-full", "vit_tiny_patch16_224", {"img_size": 32, "depth": 2}, 32, "full"),
    ("convnext-pointwise", "convnext_atto", {}, 32, "*1.mlp.fc1*"),
    ("convnext-scale", "convnext_atto", {}, 32, "*gamma"),
    ("vit-lora", "vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, 32, ["lora", "bias"]),
    ("lite0-lora", "tf_efficientnet_lite0", {}, 32, "lora"),
    (
        "convnext-lora",
        "convnext_tiny",
        {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
        32,
        "lora",
    ),
    (
        "swin-lora",
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "depths": (2, 1, 1, 1)},
        56,
        "lora",
    ),
    (
        "swin-bias",
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "depths": (2, 1, 1, 1)},
        56,
        "bias",
    ),
]


def parameters(clf):
    """Return all that predicts, as one vector."""
    return np.concatenate([clf.readout_.ravel(), clf.displacement_]).astype(float)


def gap(clf, refit):
    """Return the relative difference of two estimators' parameters."""
    expected = parameters(refit)
    return np.linalg.norm(parameters(clf) - expected) / np.linalg.norm(expected)


def randomise(net, seed=0):
    """Give batch norms statistics and affine parameters that hide no mistake."""
    draws = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.5, 2, generator=draws)
            module.running_mean.normal_(generator=draws)
            module.weight.data.uniform_(0.5, 1.5, generator=draws)
            module.bias.data.normal_(generator=draws)
    return net


class Transformer(nn.Module):
    """torch's own layers, whose fused path has no derivatives; tokens are the first numbers of a row."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 8)
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(self.layer(x.flatten(1)[:, :8, None])).mean(1)


class SharedWeight(nn.Module):
    """A weight is used without calling its layer, so that only a tap on the whole network sees it."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x):
        h = nn.functional.linear(x.flatten(1)[:, :4], self.layer.weight)
        return self.last(torch.tanh(self.norm(h)))
