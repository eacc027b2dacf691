"""Readers: where files are, and one plane out of an image file."""
