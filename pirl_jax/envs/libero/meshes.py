"""Compile a LIBERO scene so that only the model stays in memory, with its own or lighter meshes.

Lighter means fewer triangles, made once per mesh file and kept in the user's cache.  Only meshes
that neither touch nor weigh anything are replaced, so that physics is the same to the last bit.
Refuses to know tasks and cameras.

Shapes: p points, f triangles, n samples on the surface (the dimension key, core/types.py).
"""

import ctypes
import functools
import hashlib
from typing import NamedTuple
import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np

from pirl_jax.envs.libero import files, kept, mesh_texture

# scipy and fast_simplification are imported where they are used, which is only while a mesh is not
# kept yet: they take a second, and simulators start often.

FOLDER = "meshes"
KEPT_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)  # of a mesh's triangles: the first that looks the same
MIN_TRIANGLES = 800  # meshes up to this size stay as they are
FEWEST_TEXTURED = 1500  # triangles of what has a texture: the hand's camera comes close to it
SURFACE_ERROR = 0.003  # of a mesh's diagonal
SURFACE_ERROR_M = 0.001  # the same, at least: a pixel sees 3 mm
TEXTURE_ERROR = 0.02  # of the texture's side
GOOD_SHARE = 0.93  # of the surface within those errors
CREASE_COSINE = 0.7  # triangles that meet at a sharper angle than 45 degrees are shaded as an edge
SAMPLES_PER_EDGE = 6  # of a triangle, less one
NEIGHBOURS = 4  # samples that are compared with an old corner
CODE = 3  # counts changes of `lightest` and what it calls: cached files of other code are not read

# What a cached file depends on, besides its source.
RECIPE = (
    CODE,
    KEPT_SHARES,
    MIN_TRIANGLES,
    FEWEST_TEXTURED,
    SURFACE_ERROR,
    SURFACE_ERROR_M,
    TEXTURE_ERROR,
    GOOD_SHARE,
    CREASE_COSINE,
)
# MJCF attributes already applied to the vertices of a cached file
PLACED = ("scale", "refpos", "refquat")


class Mesh(NamedTuple):
    """A mesh whose triangles share their points."""

    points_p3: np.ndarray  # m
    triangles_f3: np.ndarray  # places in points_p3
    texture_f32: np.ndarray  # texture coordinates of the corners; [f,3,0] without a texture

    @property
    def corners_f33(self) -> np.ndarray:
        """Positions (m) of each triangle's corners."""
        return self.points_p3[self.triangles_f3]


class Corners(NamedTuple):
    """A mesh whose triangles have corners of their own: that of a lighter mesh."""

    position_f33: np.ndarray  # m
    normal_f33: np.ndarray  # unit length
    texture_f32: np.ndarray  # [f,3,0] without a texture


def compile_model(xml: str) -> mujoco.MjModel:
    """The compiled model of MJCF text, and nothing else.

    Parsed files and their copies take 4 times its memory.
    """
    spec = mujoco.MjSpec.from_string(xml)
    model = spec.compile()
    del spec
    mujoco.mj_clearCache(mujoco.mj_getCache())  # decoded meshes and textures
    return_freed_memory()
    return model


def return_freed_memory() -> None:
    """To the system; for after a model or a renderer went.  Only glibc keeps what was freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def lighten(xml: str) -> str:
    """MJCF text with lighter meshes where only the eye can tell.

    Raises:
        ValueError: a mesh file is not named by its absolute path.
    """
    root = ElementTree.fromstring(xml)
    textured = visual_meshes(xml)
    names = {}  # by element
    makers = {}
    for element in root.iter("mesh"):
        name = element.get("name")
        if name in textured and element.get("file") is not None:
            names[element] = _file_name(element, textured[name])
            makers[names[element]] = functools.partial(_lighter_file, element, textured[name])
    paths = kept.make(FOLDER, makers)
    for element, name in names.items():
        if paths[name].stat().st_size:  # an empty file: the mesh stays as it is
            attributes = {key: value for key, value in element.items() if key not in PLACED}
            attributes["file"] = str(paths[name])
            attributes["inertia"] = "shell"  # which may have holes
            element.attrib = attributes
    return ElementTree.tostring(root, encoding="unicode")


def visual_meshes(xml: str) -> dict[str, bool]:
    """The meshes whose every geom is a picture only -> whether it has a texture.

    A picture touches nothing and has no mass.
    """
    spec = mujoco.MjSpec.from_string(xml)
    lowest, highest = spec.compiler.inertiagrouprange
    with_texture = {material.name for material in spec.materials if any(material.textures)}
    pictures = {}
    others = set()
    for geom in spec.geoms:
        is_mesh = geom.type == mujoco.mjtGeom.mjGEOM_MESH
        touches = geom.contype or geom.conaffinity
        weighs = lowest <= geom.group <= highest
        if is_mesh and not touches and not weighs:
            before = pictures.get(geom.meshname, False)
            pictures[geom.meshname] = before or geom.material in with_texture
        else:
            others.add(geom.meshname)
    return {name: textured for name, textured in pictures.items() if name not in others}


def _file_name(element: ElementTree.Element, textured: bool) -> str:
    """Of the lighter mesh: by the content of the whole one and the recipe."""
    source = files.absolute(element.get("file"))
    attributes = sorted((name, value) for name, value in element.items() if name != "file")
    digest = hashlib.sha256(source.read_bytes())
    digest.update(repr((RECIPE, textured, source.suffix, attributes)).encode())
    return f"{digest.hexdigest()[:24]}.msh"


def _lighter_file(element: ElementTree.Element, textured: bool) -> bytes:
    """Of the lighter mesh; empty if none looks the same."""
    mesh = read(element)
    if not textured:
        mesh = mesh._replace(texture_f32=mesh.texture_f32[:, :, :0])
    lighter = lightest(mesh)
    return to_msh(lighter) if lighter else b""


def read(element: ElementTree.Element) -> Mesh:
    """The mesh of an MJCF element as MuJoCo reads it, placed and scaled."""
    root = ElementTree.Element("mujoco")
    attributes = {name: value for name, value in element.items() if name != "class"}
    attributes["name"] = "mesh"
    attributes["inertia"] = "shell"  # which may have holes
    geom = {"type": "mesh", "mesh": "mesh", "contype": "0", "conaffinity": "0"}
    assets = ElementTree.SubElement(root, "asset")
    world = ElementTree.SubElement(root, "worldbody")
    ElementTree.SubElement(assets, "mesh", attributes)
    ElementTree.SubElement(world, "geom", geom)
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    # undo the compiler's move to the center of mass
    axes_9 = np.empty(9)
    mujoco.mju_quat2Mat(axes_9, model.mesh_quat[0])
    points_p3 = model.mesh_vert @ axes_9.reshape(3, 3).T + model.mesh_pos[0]
    if model.mesh_texcoordnum[0]:
        texture_f32 = model.mesh_texcoord[model.mesh_facetexcoord]
    else:
        texture_f32 = np.empty((model.nmeshface, 3, 0))
    return Mesh(points_p3, model.mesh_face.copy(), texture_f32)


def lightest(mesh: Mesh) -> Corners | None:
    """The mesh of the fewest triangles that looks the same; None: only the whole one does."""
    if len(mesh.triangles_f3) <= MIN_TRIANGLES:
        return None
    for share in KEPT_SHARES:
        if mesh.texture_f32.size and share * len(mesh.triangles_f3) < FEWEST_TEXTURED:
            continue
        lighter = decimate(mesh, share)
        if looks_same(mesh, lighter):
            return lighter
    return None


def looks_same(mesh: Mesh, lighter: Corners) -> bool:
    """Whether the lighter mesh cannot be told from the other.

    Nearly all old corners, by area, lie on the new surface and wear the texture that it has there.
    """
    from scipy import spatial

    old_p3 = mesh.corners_f33.reshape(-1, 3)
    area_f = np.linalg.norm(_double_area(mesh.corners_f33), axis=1)
    weights = _sample_weights()
    samples_n3 = np.einsum("sk,gki->gsi", weights, lighter.position_f33).reshape(-1, 3)
    texture = np.einsum("sk,gki->gsi", weights, lighter.texture_f32)
    texture_n2 = texture.reshape(len(samples_n3), -1)
    normal_f3 = _unit(_double_area(lighter.position_f33))
    normal_n3 = normal_f3.repeat(len(weights), axis=0)
    edge_f3 = lighter.position_f33[:, 1] - lighter.position_f33[:, 0]
    edge_n = np.linalg.norm(edge_f3, axis=1).repeat(len(weights))

    diagonal_m = np.linalg.norm(np.ptp(old_p3, axis=0))
    error_m = max(SURFACE_ERROR_M, SURFACE_ERROR * diagonal_m)
    near_p4 = spatial.cKDTree(samples_n3).query(old_p3, k=NEIGHBOURS)[1]
    away_p43 = old_p3[:, None] - samples_n3[near_p4]
    spacing_p4 = edge_n[near_p4] / SAMPLES_PER_EDGE
    height_p4 = np.abs(np.einsum("nki,nki->nk", away_p43, normal_n3[near_p4]))
    good_p4 = height_p4 < error_m
    # beside the triangle's edge is not on it
    good_p4 &= np.linalg.norm(away_p43, axis=2) < error_m + spacing_p4
    if mesh.texture_f32.size:
        apart_p42 = mesh.texture_f32.reshape(-1, 1, 2) - texture_n2[near_p4]
        good_p4 &= np.linalg.norm(apart_p42, axis=2) < TEXTURE_ERROR
    return np.average(good_p4.any(axis=1), weights=area_f.repeat(3)) >= GOOD_SHARE


def _sample_weights() -> np.ndarray:
    """[28,3]: samples of a triangle as weights of its corners."""
    weights = []
    for i in range(SAMPLES_PER_EDGE + 1):
        for j in range(SAMPLES_PER_EDGE + 1 - i):
            weights.append((i, j, SAMPLES_PER_EDGE - i - j))
    return np.array(weights) / SAMPLES_PER_EDGE


def decimate(mesh: Mesh, share: float) -> Corners:
    """The mesh with that share of its triangles."""
    import fast_simplification

    # Corners in one place become one point, else the seams of the texture open.
    single = mesh.points_p3.astype(np.float32)
    points_p3, point_of = np.unique(single, axis=0, return_inverse=True)
    triangles_f3 = point_of.reshape(-1)[mesh.triangles_f3]
    whole_f = _is_whole(triangles_f3)
    welded = Mesh(points_p3, triangles_f3[whole_f], mesh.texture_f32[whole_f])
    _, _, collapses = fast_simplification.simplify(
        welded.points_p3,
        welded.triangles_f3,
        target_count=int(share * len(welded.triangles_f3)),
        return_collapses=True,
    )
    moved_p3, _, moved_to = fast_simplification.replay_simplification(
        welded.points_p3, welded.triangles_f3, collapses
    )
    left_f3 = moved_to[welded.triangles_f3]
    alive = np.flatnonzero(_is_whole(left_f3))
    left_f3 = left_f3[alive]
    position_f33 = moved_p3[left_f3]
    texture_f32 = welded.texture_f32[alive]
    if texture_f32.size:
        places_n3 = position_f33.reshape(-1, 3)
        texture_n2 = mesh_texture.moved(*welded, alive, places_n3, moved_to)
        texture_f32 = texture_n2.reshape(-1, 3, 2)
    return Corners(position_f33, _normals(moved_p3, left_f3), texture_f32)


def _is_whole(triangles_f3: np.ndarray) -> np.ndarray:
    """[f] bool: triangles that have three different corners."""
    return (triangles_f3 != np.roll(triangles_f3, 1, axis=1)).all(axis=1)


def _normals(points_p3: np.ndarray, triangles_f3: np.ndarray) -> np.ndarray:
    """[f,3,3] unit normals of corners.

    The mean, by area, over the triangles that meet there at less than the crease angle.
    """
    from scipy import sparse

    area_f3 = _double_area(points_p3[triangles_f3].astype(np.float64))
    unit_f3 = _unit(area_f3)
    num_corners = triangles_f3.size
    point_of = (np.arange(num_corners), triangles_f3.ravel())
    at = sparse.csr_matrix((np.ones(num_corners), point_of))
    here, there = (at @ at.T).nonzero()  # pairs of corners in one place
    cosine = np.einsum("ij,ij->i", unit_f3[here // 3], unit_f3[there // 3])
    smooth = cosine > CREASE_COSINE
    pairs = (here[smooth], there[smooth])
    ones = np.ones(len(pairs[0]))
    sums = sparse.csr_matrix((ones, pairs), shape=(num_corners, num_corners))
    total = sums @ area_f3.repeat(3, axis=0)
    return _unit(total).reshape(-1, 3, 3)


def _double_area(corners_f33: np.ndarray) -> np.ndarray:
    """[f,3] normals, twice as long as the triangles are large."""
    first = corners_f33[:, 1] - corners_f33[:, 0]
    second = corners_f33[:, 2] - corners_f33[:, 0]
    return np.cross(first, second)


def _unit(vectors_p3: np.ndarray) -> np.ndarray:
    """Of unit length; what has no direction points up."""
    length_p1 = np.linalg.norm(vectors_p3, axis=1, keepdims=True)
    divisor_p1 = np.where(length_p1 > 0, length_p1, 1)
    return np.where(length_p1 > 0, vectors_p3 / divisor_p1, (0.0, 0.0, 1.0))


def to_msh(mesh: Corners) -> bytes:
    """MuJoCo's legacy binary mesh.

    Four int32 counts, float32 positions, normals and texture coordinates, int32 triangles.
    """
    num_triangles = len(mesh.position_f33)
    records = np.concatenate(mesh, axis=2).reshape(num_triangles * 3, -1)
    unique, index = np.unique(records.astype(np.float32), axis=0, return_inverse=True)
    num_textured = len(unique) * (mesh.texture_f32.shape[2] > 0)
    counts = np.array([len(unique), len(unique), num_textured, num_triangles], np.int32)
    parts = (
        counts,
        unique[:, :3],
        unique[:, 3:6],
        unique[:, 6:],
        index.reshape(-1, 3).astype(np.int32),
    )
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
