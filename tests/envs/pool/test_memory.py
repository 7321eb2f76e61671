"""The shared block of observations."""

import os

from pirl_jax.envs import probes
from pirl_jax.envs.pool import memory


def test_two_maps_show_the_same_and_the_file_has_no_name():
    before = set(os.listdir("/dev/shm"))
    descriptor = memory.create()
    spec = probes.make("constant", image_size_px=3).spec
    owner = memory.Memory(descriptor, spec, num_envs=2, owner=True)
    other = memory.Memory(descriptor, spec, num_envs=2, owner=False)
    other.images_EVYX3[1] = 7
    other.state_EQ[1] = -2.5
    assert owner.images_EVYX3.shape == (2, 2, 3, 3, 3)
    assert (owner.images_EVYX3[0] == 0).all()
    assert (owner.images_EVYX3[1] == 7).all()
    assert (owner.state_EQ[1] == -2.5).all()
    assert set(os.listdir("/dev/shm")) == before
    owner.close()
    other.close()
    os.close(descriptor)


def test_state_lies_aligned_for_any_image_size():
    descriptor = memory.create()
    spec = probes.make("constant", image_size_px=3).spec
    block = memory.Memory(descriptor, spec, num_envs=3, owner=True)
    assert block.state_EQ.flags.aligned
    assert block.images_EVYX3.nbytes == 3 * 2 * 27
    block.close()
    os.close(descriptor)
