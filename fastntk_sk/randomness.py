"""Independent seeded streams: one integer seed, one generator per purpose and index."""

from __future__ import annotations

import numpy as np
import torch

_STREAMS = (
    "directions", "projection", "prompts", "mlp", "synthetic", "weights", "batches", "sketch", "lora",
)  # fmt: skip


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """Return the CPU generator of one stream; the global generators are never touched.

    Streams of one seed are independent, and so are the indices of a stream: what is drawn for class
    `index` does not depend on the number of classes.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.randomness import generator
    >>> a = torch.randn(3, generator=generator(0, "directions", 1))
    >>> b = torch.randn(3, generator=generator(0, "directions", 1))
    >>> bool((a == b).all())
    True
    """
    entropy = np.random.SeedSequence((seed, _STREAMS.index(stream), index))
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
