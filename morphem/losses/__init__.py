"""Losses: tensors in, a number out; no Lightning."""
