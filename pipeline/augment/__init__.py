"""Augmentation: named recipes over DALI's nodes, composed in the configuration.

Draws come from the counter-based generator at (seed, epoch, position) and enter the graph as
argument inputs, so a resumed or resharded run sees the very same pixels. DALI's own random
operators keep a state, which a resumed run would not have, and are not used. Branches are Python
`if`s on drawn booleans, which DALI makes into conditionals: an image that does not take a branch
does not pay for it. So a graph with recipes has to be built under
``pipeline_def(enable_conditionals=True)``.
"""

from pipeline.augment.composition import OWN_RECIPES, RECIPES, Augmentation, register_recipe
from pipeline.augment.recipe import Draw, Node, Recipe

__all__ = ["OWN_RECIPES", "RECIPES", "Augmentation", "Draw", "Node", "Recipe", "register_recipe"]
