"""Data sources: studies of images that `morphem ingest` reads."""
