"""Slow, obvious, independent: loops, plain autograd, dense float64 algebra. Nothing of the library."""

import numpy as np
import torch


def jacobian(net, names, x, readout):
    """d/dtheta of readout @ net(x), row by row and class by class: (n, C, p)."""
    parameters = [dict(net.named_parameters())[name] for name in names]
    before = [parameter.requires_grad for parameter in parameters]
    rows = []
    for parameter in parameters:
        parameter.requires_grad_(True)
    for image in x:
        scores = readout @ net(image[None])[0]
        for score in scores:
            grads = torch.autograd.grad(score, parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    for parameter, flag in zip(parameters, before, strict=True):
        parameter.requires_grad_(flag)
    return torch.stack(rows).view(len(x), len(readout), -1)


def ridge(h, J, labels, weights, alpha, tangent_scale, target_scale, centre=None):
    """Minimise the objective by stacking every row and class into one least-squares problem.

    Returns W of shape (C, d + 1) and z of shape (k,).
    """
    n, n_classes, k = J.shape
    width = h.shape[1]
    design, target = [], []
    for i in range(n):
        for c in range(n_classes):
            row = np.zeros(n_classes * width + k)
            row[c * width : (c + 1) * width] = h[i]
            row[n_classes * width :] = np.sqrt(tangent_scale) * J[i, c]
            design.append(np.sqrt(weights[i]) * row)
            target.append(np.sqrt(weights[i]) * target_scale * ((labels[i] == c) - 1 / n_classes))
    unknowns = n_classes * width + k
    stacked = np.vstack([design, np.sqrt(alpha) * np.eye(unknowns)])
    pull = np.zeros(unknowns)
    if centre is not None:
        pull[n_classes * width :] = np.sqrt(alpha) * np.asarray(centre)
    solution = np.linalg.lstsq(stacked, np.concatenate([target, pull]))[0]
    return solution[: n_classes * width].reshape(n_classes, width), solution[n_classes * width :]
