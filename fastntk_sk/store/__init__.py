"""The private half of a fitted estimator: ledger, receipts, and the folder that holds the statistics."""
