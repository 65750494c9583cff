"""The sums that a fit rests on, and their solution: pure functions of tensors."""
