"""Networks on tokens, one file each."""
