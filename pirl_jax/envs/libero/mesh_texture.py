"""Where in its picture a corner lies that was moved while a mesh lost triangles.

A texture is cut: on both sides of a cut the mesh hangs together, and its picture does not.  A
corner stays on the side of its triangle, else the triangle shows all that lies between, as a crack.
Refuses to know how triangles are chosen.

Shapes: p points, f triangles of the whole mesh, c its corners by point and texture, n moved ones.
"""

from typing import NamedTuple

import numpy as np

CUT = 3.0  # by so much lengths in the picture count less than lengths in space


class Whole(NamedTuple):
    """A mesh before it lost triangles."""

    corners_f33: np.ndarray  # m
    texture_f32: np.ndarray
    corner_f3: np.ndarray  # places in the two below
    place_c3: np.ndarray  # m
    texture_c2: np.ndarray

    def edges(self) -> np.ndarray:
        """[edges,2] corners that a triangle joins."""
        first, second, third = self.corner_f3.T
        ends = np.concatenate([second, third, first])
        return np.column_stack([self.corner_f3.T.ravel(), ends])

    def side_m(self) -> float:
        """About how long the picture's side is on the mesh."""
        sides_f23 = self.corners_f33[:, 1:] - self.corners_f33[:, :1]
        across_f3 = np.cross(sides_f23[:, 0], sides_f23[:, 1])
        area_m2 = np.linalg.norm(across_f3, axis=1).sum()
        sides_f22 = self.texture_f32[:, 1:] - self.texture_f32[:, :1]
        share = np.abs(np.linalg.det(sides_f22)).sum()
        return float(np.sqrt(area_m2 / share)) if share else 0.0


def moved(
    points_p3: np.ndarray,
    triangles_f3: np.ndarray,
    texture_f32: np.ndarray,
    alive: np.ndarray,
    position_n3: np.ndarray,
    moved_to: np.ndarray,
) -> np.ndarray:
    """[n,2] of the corners of the triangles `alive`, moved to these positions.

    Each is that of the nearest place on the old mesh that hangs together with the old corner in
    space and picture.  As both sides of a cut may hang together around its ends, it is looked for
    near a first guess, which lies on the right side: among the places that were merged with the old
    corner (`moved_to` [p], the new point of each) and hang together with it themselves.
    """
    texture = texture_f32.reshape(-1, 2)
    keys = np.column_stack([triangles_f3.ravel(), texture])
    unique, corner_of = np.unique(keys, axis=0, return_inverse=True)
    point_c = unique[:, 0].astype(int)
    whole = Whole(
        corners_f33=points_p3[triangles_f3].astype(np.float64),
        texture_f32=texture_f32,
        corner_f3=corner_of.reshape(-1, 3),
        place_c3=points_p3[point_c],
        texture_c2=unique[:, 1:],
    )
    old_n = whole.corner_f3[alive].ravel()
    edges = whole.edges()
    new_point = moved_to[point_c]
    first, second = new_point[edges].T
    no_texture = np.zeros((len(position_n3), 2))
    guess_n2 = _nearest(
        whole,
        edges[first == second],
        old_n,
        np.column_stack([position_n3, no_texture]),
        weight_m=0.0,
    )
    return _nearest(
        whole,
        edges,
        old_n,
        np.column_stack([position_n3, guess_n2]),
        weight_m=whole.side_m() / CUT,
    )


def _nearest(
    whole: Whole, edges: np.ndarray, old_n: np.ndarray, target_n5: np.ndarray, weight_m: float
) -> np.ndarray:
    """[n,2] of about the nearest places in the patches of the corners `old_n`.

    In the triangles at the nearest corner, that is.  `edges` [edges,2] hold patches together;
    `target_n5` are place and texture, and the picture's side counts as `weight_m`.
    """
    from scipy import sparse, spatial
    from scipy.sparse import csgraph

    count = len(whole.place_c3)
    ones = np.ones(len(edges))
    graph = sparse.coo_matrix((ones, edges.T), shape=(count, count))
    _, patch_c = csgraph.connected_components(graph, directed=False)
    # Patches become layers of a further dimension, far from each other.
    size_m = np.ptp(whole.place_c3, axis=0).max()
    layer_c = 10 * size_m * patch_c
    weights_5 = np.array([1, 1, 1, weight_m, weight_m])
    place_c5 = np.column_stack([whole.place_c3, whole.texture_c2])
    tree = spatial.cKDTree(np.column_stack([place_c5 * weights_5, layer_c]))
    wanted = np.column_stack([target_n5 * weights_5, layer_c[old_n]])
    _, corner_n = tree.query(wanted)
    return _in_triangles(whole, corner_n, target_n5[:, :3])


def _in_triangles(whole: Whole, corner_n: np.ndarray, position_n3: np.ndarray) -> np.ndarray:
    """[n,2] of about the nearest places in the triangles at these corners."""
    from scipy import sparse

    corner = whole.corner_f3.ravel()
    triangle = np.arange(len(corner)) // 3
    ones = np.ones(len(corner))
    at = sparse.csr_matrix((ones, (corner, triangle)))
    row, triangle = at[corner_n].nonzero()
    corners_33 = whole.corners_f33[triangle]
    points_3 = position_n3[row]
    weights_3 = _weights(corners_33, points_3)
    places_3 = np.einsum("rk,rki->ri", weights_3, corners_33)
    away_m = np.linalg.norm(places_3 - points_3, axis=1)
    by_distance = np.lexsort((away_m, row))
    _, first = np.unique(row[by_distance], return_index=True)
    best = by_distance[first]
    texture_32 = whole.texture_f32[triangle[best]]
    return np.einsum("nk,nki->ni", weights_3[best], texture_32)


def _weights(corners_33: np.ndarray, points_3: np.ndarray) -> np.ndarray:
    """Of a triangle's corners, for about its nearest place to a point; a row of each.

    None is negative: outside of the triangles a picture may show anything.
    """
    sides_23 = corners_33[:, 1:] - corners_33[:, :1]
    offset_13 = (points_3 - corners_33[:, 0])[:, None]
    others_2 = (offset_13 @ np.linalg.pinv(sides_23))[:, 0]
    first = 1 - others_2.sum(axis=1)
    weights_3 = np.column_stack([first, others_2])
    weights_3 = weights_3.clip(min=0)
    return weights_3 / weights_3.sum(axis=1, keepdims=True)
