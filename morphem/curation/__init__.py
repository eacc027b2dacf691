"""Curation: which images of a study are worth keeping.

Example:
    >>> from morphem.curation import Recipe
    >>> recipe = Recipe.from_dict({"steps": [{"step": "central_z_planes", "share": 0.2}]})
    >>> sorted(recipe.needs)
    ['metadata']
"""

from morphem.curation.features import features_of, in_order
from morphem.curation.recipe import STEPS, Recipe
from morphem.curation.selection import Selection, table_of
from morphem.curation.step import Step

__all__ = ["STEPS", "Recipe", "Selection", "Step", "features_of", "in_order", "table_of"]
