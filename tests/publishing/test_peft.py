"""Adapters of networks of transformers, as peft loads them onto an image classifier."""

import numpy as np
import peft
import pytest
import torch
import transformers

from fastntk_sk import FastNTKClassifier

CASES = {
    "ViT": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 8,
        "image_size": 32,
    },
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
}


@pytest.mark.filterwarnings("ignore:.*preprocessor_config:UserWarning")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
@pytest.mark.parametrize("name", CASES)
def test_scores_of_an_image_classifier(digits, tmp_path, name):
    X, y = digits[0][:24], digits[1][:24] % 3
    network = getattr(transformers, f"{name}ForImageClassification")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network(getattr(transformers, f"{name}Config")(**CASES[name])).save_pretrained(tmp_path / "net")
    clf = FastNTKClassifier(
        f"local-dir:{tmp_path / 'net'}",
        trainable="lora",
        anchor="finetuned",
        max_epochs=1,
        learning_rate=1e-4,
        image_size=32,
        n_components=32,
        batch_size=8,
        random_state=0,
    )
    clf.fit(X, y).unlearn(X[:3]).export_peft(tmp_path / "adapter")
    base = network.from_pretrained(tmp_path / "net", num_labels=3, ignore_mismatched_sizes=True)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    batch = next(clf._adapter.model.batches(clf._rows(X)))
    with torch.no_grad():
        scores = loaded(batch).logits.numpy()
    np.testing.assert_allclose(scores, clf.decision_function(X)[: len(batch)], rtol=1e-5, atol=1e-5)
