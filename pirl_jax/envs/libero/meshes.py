"""Compile a LIBERO scene so that only the model stays in memory, with its own or with lighter visual meshes.

Lighter means fewer triangles, made once per mesh file and kept in the user's cache.  Only meshes that neither touch
nor weigh anything are replaced, so that physics is the same to the last bit.  Refuses to know tasks and cameras.
"""

import ctypes
import hashlib
import pathlib
import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np
from scipy import sparse, spatial
from scipy.sparse import csgraph

from pirl_jax.envs.libero import files

KEPT_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)  # of a mesh's triangles: the first that looks the same
MIN_FACES = 800  # meshes up to this size stay as they are
SURFACE_ERROR, SURFACE_ERROR_M = (
    0.003,
    0.001,
)  # of a mesh's diagonal, but no less than that; a pixel sees 3 mm
TEXTURE_ERROR = 0.02  # of the texture's side
GOOD_SHARE = 0.93  # of the surface within those errors
CREASE_COSINE = 0.7  # faces that meet at a sharper angle than 45 degrees are shaded as an edge
CODE = 1  # counts changes of `lightest` and what it calls: cached files of other code are not read
RECIPE = (
    CODE,
    KEPT_SHARES,
    MIN_FACES,
    SURFACE_ERROR,
    SURFACE_ERROR_M,
    TEXTURE_ERROR,
    GOOD_SHARE,
    CREASE_COSINE,
)
PLACED = (
    "scale",
    "refpos",
    "refquat",
)  # MJCF attributes already applied to the vertices of a cached file


def compile_model(xml: str) -> mujoco.MjModel:
    """The compiled model of MJCF text, and nothing else: parsed files and their copies take 4 times its memory."""
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
    """MJCF text (mesh files by absolute path) with lighter meshes where only the eye can tell."""
    root, textured = ElementTree.fromstring(xml), visual_meshes(xml)
    for element in root.iter("mesh"):
        if element.get("name") in textured and "file" in element.keys():
            lighter = _cached(element, textured[element.get("name")])
            if lighter is not None:
                element.attrib = {k: v for k, v in element.attrib.items() if k not in PLACED}
                element.attrib |= {
                    "file": str(lighter),
                    "inertia": "shell",
                }  # a shell may have holes
    return ElementTree.tostring(root, encoding="unicode")


def visual_meshes(xml: str) -> dict[str, bool]:
    """The meshes whose every geom is a picture only, touching nothing and without mass -> whether it has a texture."""
    spec = mujoco.MjSpec.from_string(xml)
    low, high = spec.compiler.inertiagrouprange
    materials = {material.name for material in spec.materials if any(material.textures)}
    pictures, others = {}, set()
    for geom in spec.geoms:
        touches = geom.contype or geom.conaffinity
        if (
            geom.type == mujoco.mjtGeom.mjGEOM_MESH
            and not touches
            and not low <= geom.group <= high
        ):
            pictures[geom.meshname] = (
                pictures.get(geom.meshname, False) or geom.material in materials
            )
        else:
            others.add(geom.meshname)
    return {name: textured for name, textured in pictures.items() if name not in others}


def _cached(element: ElementTree.Element, textured: bool) -> pathlib.Path | None:
    """The file of the lighter mesh, made if it is not there; None if the mesh is small enough.

    Named by content and recipe, and moved into place when complete: workers that start at once write the same.
    """
    source = pathlib.Path(element.get("file"))
    if not source.is_absolute():
        raise ValueError(
            f"mesh file {source} is not an absolute path; pass the text of robosuite's model.get_xml()"
        )
    key = hashlib.sha256(source.read_bytes())
    attributes = sorted((k, v) for k, v in element.items() if k != "file")
    key.update(repr((RECIPE, textured, source.suffix, attributes)).encode())
    path = files.cache_folder("meshes") / f"{key.hexdigest()[:24]}.msh"
    if not path.exists():
        vertices_V3, faces_F3, uv_F32 = read(element)
        lighter = lightest(vertices_V3, faces_F3, uv_F32 if textured else uv_F32[:, :, :0])
        files.write_whole(path, to_msh(*lighter) if lighter else b"")
    return path if path.stat().st_size else None


def read(element: ElementTree.Element) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As MuJoCo reads it: vertices [V,3] (m), faces [F,3], texture coordinates of the corners [F,3,2] (or [F,3,0])."""
    root = ElementTree.Element("mujoco")
    assets, world = ElementTree.SubElement(root, "asset"), ElementTree.SubElement(root, "worldbody")
    attributes = {k: v for k, v in element.items() if k != "class"} | {
        "name": "mesh",
        "inertia": "shell",
    }
    ElementTree.SubElement(assets, "mesh", attributes)
    ElementTree.SubElement(
        world, "geom", {"type": "mesh", "mesh": "mesh", "contype": "0", "conaffinity": "0"}
    )
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    axes = np.empty(9)
    mujoco.mju_quat2Mat(axes, model.mesh_quat[0])  # undo the compiler's move to the center of mass
    vertices_V3 = model.mesh_vert @ axes.reshape(3, 3).T + model.mesh_pos[0]
    if not model.mesh_texcoordnum[0]:
        return vertices_V3, model.mesh_face.copy(), np.empty((model.nmeshface, 3, 0))
    return vertices_V3, model.mesh_face.copy(), model.mesh_texcoord[model.mesh_facetexcoord]


def lightest(vertices_V3, faces_F3, uv_F32) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The mesh of the fewest faces that looks the same, as `decimate` gives it; None: only the whole one does."""
    for share in KEPT_SHARES if len(faces_F3) > MIN_FACES else ():
        lighter = decimate(vertices_V3, faces_F3, uv_F32, share)
        if looks_same(vertices_V3[faces_F3], uv_F32, *lighter):
            return lighter
    return None


def looks_same(old_F33, old_uv_F32, corners_G33, normals_G33, uv_G32) -> bool:
    """Whether nearly all old corners, by area, lie on the new surface and wear the texture that it has there."""
    old_N3, area_F = old_F33.reshape(-1, 3), np.linalg.norm(_area(old_F33), axis=1)
    steps = (
        np.array([(i, j, 6 - i - j) for i in range(7) for j in range(7 - i)]) / 6
    )  # 28 samples of a face
    samples_M3 = np.einsum("sk,gki->gsi", steps, corners_G33).reshape(-1, 3)
    uv_M2 = np.einsum("sk,gki->gsi", steps, uv_G32).reshape(len(samples_M3), -1)
    error_m = max(SURFACE_ERROR_M, SURFACE_ERROR * np.linalg.norm(np.ptp(old_N3, axis=0)))
    normal_M3 = _unit(_area(corners_G33)).repeat(len(steps), axis=0)
    near_N4 = spatial.cKDTree(samples_M3).query(old_N3, k=4)[1]
    away_N43 = old_N3[:, None] - samples_M3[near_N4]
    spacing_m = (
        np.linalg.norm(corners_G33[:, 1] - corners_G33[:, 0], axis=1).repeat(len(steps))[near_N4]
        / 6
    )
    good_N4 = np.abs(np.einsum("nki,nki->nk", away_N43, normal_M3[near_N4])) < error_m
    good_N4 &= (
        np.linalg.norm(away_N43, axis=2) < error_m + spacing_m
    )  # beside the face's edge is not on it
    if old_uv_F32.size:
        good_N4 &= (
            np.linalg.norm(old_uv_F32.reshape(-1, 1, 2) - uv_M2[near_N4], axis=2) < TEXTURE_ERROR
        )
    return np.average(good_N4.any(axis=1), weights=area_F.repeat(3)) >= GOOD_SHARE


def decimate(
    vertices_V3, faces_F3, uv_F32, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """That share of the faces: corners' positions [G,3,3], normals [G,3,3], texture coordinates [G,3,2 or 0]."""
    import fast_simplification  # only where a mesh is not in the cache yet

    points_V3, welded_V = np.unique(vertices_V3.astype(np.float32), axis=0, return_inverse=True)
    welded_F3 = welded_V.reshape(-1)[faces_F3]
    whole_F = (welded_F3 != np.roll(welded_F3, 1, axis=1)).all(axis=1)
    welded_F3, uv_F32 = welded_F3[whole_F], uv_F32[whole_F]
    count = int(share * len(welded_F3))
    _, _, collapses = fast_simplification.simplify(
        points_V3, welded_F3, target_count=count, return_collapses=True
    )
    new_P3, _, moved_V = fast_simplification.replay_simplification(points_V3, welded_F3, collapses)
    left_F3 = moved_V[welded_F3]  # a face that keeps three different corners is still there
    alive = np.flatnonzero((left_F3 != np.roll(left_F3, 1, axis=1)).all(axis=1))
    left_G3 = left_F3[alive]
    uv_G32 = (
        _textured(points_V3, welded_F3, uv_F32, alive, new_P3[left_G3])
        if uv_F32.size
        else uv_F32[alive]
    )
    return new_P3[left_G3], _normals(new_P3, left_G3), uv_G32


def _textured(points_V3, faces_F3, uv_F32, alive_G, corners_G33) -> np.ndarray:
    """[G,3,2] texture coordinates at the moved corners: those of the nearest old corner of the same patch.

    A patch is what hangs together in space and in the texture; across its border the texture jumps.
    """
    corners = np.column_stack([faces_F3.ravel(), uv_F32.reshape(-1, 2)])
    unique, corner_of = np.unique(corners, axis=0, return_inverse=True)
    corner_F3 = corner_of.reshape(-1, 3)
    edges = np.concatenate([corner_F3[:, :2], corner_F3[:, 1:]])
    graph = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(unique),) * 2)
    patch = csgraph.connected_components(graph, directed=False)[1]
    apart_m = 10 * np.ptp(points_V3, axis=0).max()  # patches become layers that far from each other
    old = np.column_stack([points_V3[unique[:, 0].astype(int)], apart_m * patch])
    new = np.column_stack([corners_G33.reshape(-1, 3), apart_m * patch[corner_F3[alive_G]].ravel()])
    return unique[spatial.cKDTree(old).query(new)[1], 1:].reshape(-1, 3, 2)


def _normals(points_P3, faces_G3) -> np.ndarray:
    """[G,3,3] unit normals of corners: the mean over faces that meet there at less than the crease angle."""
    area_G3 = _area(points_P3[faces_G3].astype(np.float64))
    unit_G3 = _unit(area_G3)
    num_corners = faces_G3.size
    at = sparse.csr_matrix((np.ones(num_corners), (np.arange(num_corners), faces_G3.ravel())))
    here, there = (at @ at.T).nonzero()  # pairs of corners in one place
    smooth = np.einsum("ij,ij->i", unit_G3[here // 3], unit_G3[there // 3]) > CREASE_COSINE
    here, there = here[smooth], there[smooth]
    total = sparse.csr_matrix(
        (np.ones(len(here)), (here, there)), shape=(num_corners,) * 2
    ) @ area_G3.repeat(3, axis=0)
    return _unit(total).reshape(-1, 3, 3)


def _area(corners_F33) -> np.ndarray:
    """[F,3] normals, twice as long as the faces are large."""
    return np.cross(corners_F33[:, 1] - corners_F33[:, 0], corners_F33[:, 2] - corners_F33[:, 0])


def _unit(vectors_N3) -> np.ndarray:
    length_N1 = np.linalg.norm(vectors_N3, axis=1, keepdims=True)
    return np.where(
        length_N1 > 0, vectors_N3 / np.where(length_N1 > 0, length_N1, 1), (0.0, 0.0, 1.0)
    )


def to_msh(corners_G33, normals_G33, uv_G32) -> bytes:
    """MuJoCo's legacy binary mesh: four int32 counts, float32 positions, normals, texture coordinates, int32 faces."""
    records = np.concatenate([corners_G33, normals_G33, uv_G32], axis=2).reshape(
        len(corners_G33) * 3, -1
    )
    unique, index = np.unique(records.astype(np.float32), axis=0, return_inverse=True)
    textured = uv_G32.shape[2] > 0
    counts = np.array(
        [len(unique), len(unique), len(unique) * textured, len(corners_G33)], np.int32
    )
    parts = (
        counts,
        unique[:, :3],
        unique[:, 3:6],
        unique[:, 6:],
        index.reshape(-1, 3).astype(np.int32),
    )
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
