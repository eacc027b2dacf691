"""Shards: how they are made, described, selected, sampled and streamed."""
