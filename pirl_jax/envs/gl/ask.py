"""What `backends` asks of a process of its own: `frame` renders a picture, `devices` lists EGL's.

Run as `python -m pirl_jax.envs.gl.ask frame|devices`.  The backend is what MUJOCO_GL says when
mujoco is imported.  A broken driver may crash or hang here: the process that asks lives on.
"""

from collections.abc import Callable
import ctypes
import sys
from typing import Any

from pirl_jax.envs import child

SIZE_PX = 64
SCENE = """<mujoco><worldbody>
  <light pos="0 0 3"/>
  <geom type="box" size=".2 .3 .4" rgba="1 0 0 1"/>
  <geom type="sphere" size=".3" pos=".5 0 0"/>
</worldbody></mujoco>"""

MAX_DEVICES = 10  # mujoco looks at no more
# Names of EGL's attributes, from the headers eglext.h of the Khronos registry.
EGL_EXTENSIONS = 0x3055
EGL_CUDA_DEVICE_NV = 0x323A
EGL_DRM_DEVICE_FILE_EXT = 0x3233


def frame() -> dict[str, str | float]:
    """{vendor, renderer, version} of GL, and pixel_std of a rendered picture.

    pixel_std: standard deviation in grey levels; 0 means that nothing was drawn.
    """
    import mujoco  # raises here where the backend's library is broken
    from OpenGL import GL

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, SIZE_PX, SIZE_PX) as renderer:
        renderer.update_scene(data)
        # GL's strings exist only while its context does.
        return {
            "vendor": GL.glGetString(GL.GL_VENDOR).decode(),
            "renderer": GL.glGetString(GL.GL_RENDERER).decode(),
            "version": GL.glGetString(GL.GL_VERSION).decode(),
            "pixel_std": float(renderer.render().std()),
        }


def devices() -> dict[str, list[dict]]:
    """{"devices": [{"cuda", "software", "file"}]} in the order of MUJOCO_EGL_DEVICE_ID."""
    egl = ctypes.CDLL("libEGL.so.1")
    query = _function(
        egl, "eglQueryDevicesEXT", ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32)
    )
    handles = (ctypes.c_void_p * MAX_DEVICES)()
    count = ctypes.c_int32()
    if not query(MAX_DEVICES, handles, ctypes.byref(count)):
        raise RuntimeError(f"eglQueryDevicesEXT failed with EGL error {egl.eglGetError():#x}")
    return {"devices": [_device(egl, handle) for handle in handles[: count.value]]}


def _device(egl: ctypes.CDLL, handle: int) -> dict[str, Any]:
    query_text = _function(
        egl, "eglQueryDeviceStringEXT", ctypes.c_void_p, ctypes.c_int32, result=ctypes.c_char_p
    )
    query_number = _function(
        egl,
        "eglQueryDeviceAttribEXT",
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.POINTER(ctypes.c_ssize_t),
    )
    # To ask for an attribute of an extension that a device lacks is an error of EGL's.
    extensions = (query_text(handle, EGL_EXTENSIONS) or b"").split()
    cuda = None
    if b"EGL_NV_device_cuda" in extensions:
        number = ctypes.c_ssize_t()
        if query_number(handle, EGL_CUDA_DEVICE_NV, ctypes.byref(number)):
            cuda = number.value
    file = None
    if b"EGL_EXT_device_drm" in extensions:
        name = query_text(handle, EGL_DRM_DEVICE_FILE_EXT) or b""
        file = name.decode() or None
    return {"cuda": cuda, "software": b"EGL_MESA_device_software" in extensions, "file": file}


def _function(
    egl: ctypes.CDLL, name: str, *arguments: type, result: type = ctypes.c_uint32
) -> Callable[..., Any]:
    """An extension function of EGL; every implementation that has devices has these."""
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(name.encode())
    if not address:
        raise RuntimeError(f"this EGL has no {name}")
    return ctypes.CFUNCTYPE(result, *arguments)(address)


if __name__ == "__main__":
    child.answer({"frame": frame, "devices": devices}[sys.argv[1]])
