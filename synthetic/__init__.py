"""Procedural faces: labeled images for the demo, the tests and the benchmarks, with no download.

A person is some fifty numbers (:class:`Identity`): shape, proportions, skin, hair, eyes, brows,
nose, mouth, perhaps a beard or glasses. An image of that person varies everything else
(:class:`Shot`): pose, light, expression, occlusion, blur, noise and background. The variation of
a shot is strong against the differences between people, so that neither raw pixels nor an
untrained network tell them apart, and a trained one does.

Read in order: people (the numbers), geometry (curves and the pose), portrait (a face from back to
front), camera (one image), sets (sheets and verification pairs).
"""

from synthetic.camera import encode_jpeg, render
from synthetic.people import Identity, Shot, identity_traits
from synthetic.sets import contact_sheet, make_pairs

__all__ = [
    "Identity",
    "Shot",
    "contact_sheet",
    "encode_jpeg",
    "identity_traits",
    "make_pairs",
    "render",
]
