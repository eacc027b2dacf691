"""Encoders that are trained already: by name, from the hub, from a folder or a checkpoint.

Only data is read: safetensors, or pickles restricted to weights.
"""

from morphem.zoo.base import ByHand, Checkpoint, Computed, HubFile, Pretrained, Record, WebFile
from morphem.zoo.catalogue import list_models
from morphem.zoo.loading import load, load_checkpoint

__all__ = [
    "ByHand",
    "Checkpoint",
    "Computed",
    "HubFile",
    "Pretrained",
    "Record",
    "WebFile",
    "list_models",
    "load",
    "load_checkpoint",
]
