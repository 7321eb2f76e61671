"""The kinds of objects that LIBERO-PRO and LIBERO-Plus add to LIBERO's.

Those of LIBERO-PRO are one of LIBERO's from another XML file; those of LIBERO-Plus lie in its own
assets.  Registered beside hf-libero's own, which stay as they are.  Imports LIBERO only when it is
asked to register; knows no tasks.
"""

import copy
import functools
import math
import pathlib
from typing import Any
from xml.etree import ElementTree

from pirl_jax.envs.libero import plus_assets

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


# How LIBERO-Plus's objects lie when they are drawn (rad).
LYING = {
    "x": (-math.pi / 2, -math.pi / 2),
    "y": (-math.pi, -math.pi),
    "z": (math.pi, math.pi),
}


def register(plus_folder: pathlib.Path | None) -> None:
    """Make the kinds known to LIBERO, which is imported already.

    LIBERO-Plus's where its assets are; another folder's replace them.
    """
    from libero.libero.envs import base_object

    if plus_folder is not None:
        for kind in plus_assets.OBJECTS:
            base_object.OBJECTS_DICT[kind] = _further(kind, plus_folder)

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


@functools.cache
def _further(kind: str, folder: pathlib.Path) -> type:
    """The class of an object of LIBERO-Plus, whose XML has one body less than robosuite expects."""
    from robosuite.models import objects

    class Further(objects.MujocoXMLObject):
        def __init__(self, name: str = kind):
            super().__init__(
                str(folder / plus_assets.object_xml(kind)),
                name=name,
                joints=[{"type": "free", "damping": "0.0005"}],
                obj_type="all",
                duplicate_collision_geoms=False,
            )
            self.category_name = kind
            self.rotation = LYING
            self.rotation_axis = None
            self.object_properties = {"vis_site_names": {}}

        def _get_object_subtree(self) -> ElementTree.Element:
            found = self.worldbody.find("./body[@name='object']")
            if found is None:
                return super()._get_object_subtree()
            own = self.worldbody
            self.worldbody = ElementTree.Element("worldbody")
            ElementTree.SubElement(self.worldbody, "body").append(copy.deepcopy(found))
            try:
                return super()._get_object_subtree()
            finally:
                self.worldbody = own

    return Further
