"""Fine-tuning by SGD, for anchor=\"finetuned\"."""
