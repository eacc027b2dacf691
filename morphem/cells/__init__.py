"""Cells: where they are in an image, from tables, masks and detectors."""

from morphem.cells.base import CellFinder, CellReader, Cells
from morphem.cells.choice import cells_from_option

__all__ = ["CellFinder", "CellReader", "Cells", "cells_from_option"]
