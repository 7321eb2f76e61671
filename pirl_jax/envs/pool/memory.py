"""Observations of all slots in one block that the pool and its workers share.

The block is a file without a name: it is inherited as a file descriptor and vanishes with the last
process that holds it, however that one ends.  So nothing can be left behind, and the size of
/dev/shm does not matter.  Refuses to know who writes when: the messages tell.
"""

import math
import mmap
import os

import numpy as np

from pirl_jax.envs import base


def create() -> int:
    """File descriptor of a new, empty block."""
    return os.memfd_create("observations")


class Memory:
    """The block behind `descriptor`, mapped; one row for each of `num_envs` slots.

    images_EVYX3: uint8.  state_EQ: float32.
    owner: whether this is the process that gives the block its size.
    """

    def __init__(self, descriptor: int, spec: base.EnvSpec, num_envs: int, owner: bool) -> None:
        size_px = spec.image_size_px
        state_shape = (num_envs, spec.state_dim)
        images_shape = (num_envs, len(spec.cameras), size_px, size_px, 3)
        # The states come first: they stay aligned to 4 bytes whatever the image size.
        images_offset = 4 * math.prod(state_shape)
        num_bytes = images_offset + math.prod(images_shape)
        if owner:
            os.ftruncate(descriptor, num_bytes)
        self._block = mmap.mmap(descriptor, num_bytes)
        self.state_EQ = np.ndarray(state_shape, np.float32, self._block)
        self.images_EVYX3 = np.ndarray(images_shape, np.uint8, self._block, offset=images_offset)

    def close(self) -> None:
        """Unmap the block; the descriptor stays open."""
        del self.state_EQ, self.images_EVYX3  # a block with living views cannot be closed
        self._block.close()
