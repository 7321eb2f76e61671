"""The kinds of objects that LIBERO-PRO adds to LIBERO's: one of LIBERO's, from another XML file.

Registered beside hf-libero's own, which stay as they are.  Imports LIBERO only when it is asked to
register; knows no tasks.
"""

import math
from typing import Any

# kind -> the kind of LIBERO's whose class it shares; its XML file has its own name
VARIED = {
    "bigger_akita_black_bowl": "akita_black_bowl",
    "bigger_alphabet_soup": "alphabet_soup",
    "black_bowl": "akita_black_bowl",
    "blue_ketchup": "ketchup",
    "brown_rack": "wine_rack",
    "green_bbq_sauce": "bbq_sauce",
    "green_butter": "butter",
    "green_chocolate_pudding": "chocolate_pudding",
    "red_basket": "basket",
    "red_cream_cheese": "cream_cheese",
    "red_salad_dressing": "salad_dressing",
    "white_bottle": "wine_bottle",
    "yellow_cabinet": "wooden_cabinet",
    "yellow_milk": "milk",
    "yellow_moka_pot": "moka_pot",
    "yellow_plate": "plate",
    "yellow_stove": "flat_stove",
    "yellow_tomato_sauce": "tomato_sauce",
}
# Where LIBERO-PRO draws other rotations (rad, about an axis) than LIBERO does for the kind varied.
UPRIGHT = {"rotation": (math.pi / 2, math.pi / 2), "rotation_axis": "x"}
TURNED = UPRIGHT | {"rotation_axis": "z"}
CHANGES = {
    "blue_ketchup": TURNED,
    "yellow_milk": TURNED,
}


def register() -> None:
    """Make the kinds known to LIBERO, once in a process; LIBERO is imported already."""
    from libero.libero.envs import base_object

    for kind, varied in VARIED.items():
        if kind in base_object.OBJECTS_DICT:
            continue
        variant = _variant(kind, base_object.OBJECTS_DICT[varied])
        base_object.OBJECTS_DICT[kind] = variant
        if varied in base_object.VISUAL_CHANGE_OBJECTS_DICT:
            base_object.VISUAL_CHANGE_OBJECTS_DICT[kind] = variant


def _variant(kind: str, varied: type) -> type:
    """A class like `varied` that reads the XML file of `kind`."""

    class Variant(varied):
        def __init__(self, name: str = kind, **options: Any):
            super().__init__(name=name, obj_name=kind, **options)
            vars(self).update(CHANGES.get(kind, {}))

    # LIBERO takes the category of an object from the name of its class.
    Variant.__name__ = "".join(word.capitalize() for word in kind.split("_"))
    return Variant
