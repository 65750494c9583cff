"""The public half of a fitted estimator: the adapter, its card, the Hub, and exports."""
