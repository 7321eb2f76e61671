"""A folder that stands in for LIBERO-Plus's own assets, which no package has.

Its files have the names that LIBERO-Plus's classes ask for, and the format of LIBERO's: scenes with
darker lights or a red table, plain pictures, boxes for the further objects.  What the genuine ones
show is not known here.
"""

import os
import pathlib
import re

from PIL import Image

from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import files, plus_assets

RED = (230, 10, 10)
BOX = """<mujoco model="box">
  <asset>
    <texture file="box.png" name="box_picture" type="2d"/>
    <material name="box_material" texture="box_picture"/>
  </asset>
  <worldbody>
    <body name="object">
      <geom class="visual" type="box" size="0.03 0.03 0.03" material="box_material"/>
      <geom class="collision" type="box" size="0.03 0.03 0.03" density="100"/>
      <site name="bottom_site" pos="0 0 -0.03" size="0.005" rgba="0 0 0 0"/>
      <site name="top_site" pos="0 0 0.03" size="0.005" rgba="0 0 0 0"/>
      <site name="horizontal_radius_site" pos="0.03 0.03 0" size="0.005" rgba="0 0 0 0"/>
    </body>
  </worldbody>
  <default>
    <default class="visual"><geom contype="0" conaffinity="0" group="1"/></default>
    <default class="collision"><geom group="0"/></default>
  </default>
</mujoco>
"""


def write(
    folder: pathlib.Path, assets: pathlib.Path, data: files.Folders, suites: list[str]
) -> files.Folders:
    """All that the tasks of these suites need -> `data` with the folder.

    assets: LIBERO's own, of which the scenes are made.
    """
    for name in ("scenes", "textures"):
        (folder / name).mkdir(parents=True)
        for path in (assets / name).iterdir():
            (folder / name / path.name).symlink_to(path)
    Image.new("RGB", (32, 32), RED).save(folder / "textures" / "red.png")
    for suite in suites:
        for task in files.tasks(suite, data):
            bddl = files.bddl_file(suite, task.number, data)
            scene = plus_assets.scene_of(bddl)
            if scene is not None:
                _write_scene(folder, scene)
    for kind in plus_assets.OBJECTS:
        path = folder / plus_assets.object_xml(kind)
        path.parent.mkdir(parents=True)
        path.write_text(BOX)
        Image.new("RGB", (8, 8), RED).save(path.with_name("box.png"))
    return files.Folders(pro=data.pro, plus=data.plus, plus_assets=folder)


def _write_scene(folder: pathlib.Path, scene: plus_assets.Scene) -> None:
    for picture in scene.pictures().values():
        path = folder / "textures" / picture
        if not path.exists():
            Image.new("RGB", (32, 32), RED).save(path)
    path = folder / scene.xml
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    own, _ = asset_files.scene(scene.problem)
    up = os.path.relpath(folder / "scenes", path.parent)
    text = (folder / own).read_text()
    text = re.sub(r'file="(?!\.\./textures)([^"]+)"', rf'file="{up}/\1"', text)
    textures = os.path.relpath(folder / "textures", path.parent)
    text = text.replace('file="../textures', f'file="{textures}')
    if path.parent.name == "lights":
        text = text.replace('diffuse=".8 .8 .8"', 'diffuse=".3 .3 .3"')
    else:
        text = text.replace("martin_novak_wood_table.png", "red.png")
        text = text.replace('seamless_wood_planks_floor.png" type="cube"', 'red.png" type="cube"')
    path.write_text(text)
