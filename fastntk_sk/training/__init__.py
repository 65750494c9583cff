"""Fine-tuning by SGD, for the anchor "finetuned"."""
