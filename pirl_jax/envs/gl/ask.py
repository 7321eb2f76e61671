"""What `gl.py` asks of a process of its own: `frame` renders a small picture, `devices` lists the EGL devices.

Run as `python -m pirl_jax.envs.gl.ask frame|devices`.  The backend is what MUJOCO_GL says when mujoco is imported.
"""

import ctypes
import sys

from pirl_jax.envs import child

SIZE_PX = 64
SCENE = """<mujoco><worldbody>
  <light pos="0 0 3"/> <geom type="box" size=".2 .3 .4" rgba="1 0 0 1"/> <geom type="sphere" size=".3" pos=".5 0 0"/>
</worldbody></mujoco>"""

MAX_DEVICES = 10  # mujoco looks at no more
EGL_EXTENSIONS = 0x3055
EGL_CUDA_DEVICE_NV = 0x323A
EGL_DRM_DEVICE_FILE_EXT = 0x3233


def frame() -> dict:
    """GL strings and the standard deviation (grey levels) of a rendered picture; 0 means that nothing was drawn."""
    import mujoco  # raises here where the backend's library is broken
    from OpenGL import GL

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, SIZE_PX, SIZE_PX) as renderer:
        renderer.update_scene(data)
        names = {"vendor": GL.GL_VENDOR, "renderer": GL.GL_RENDERER, "version": GL.GL_VERSION}
        strings = {key: GL.glGetString(name).decode() for key, name in names.items()}
        return strings | {"pixel_std": float(renderer.render().std())}


def devices() -> dict:
    """{"devices": [{"cuda", "software", "file"}]} in EGL's order, which is the order of MUJOCO_EGL_DEVICE_ID."""
    egl = ctypes.CDLL("libEGL.so.1")
    handles = (ctypes.c_void_p * MAX_DEVICES)()
    count = ctypes.c_int32()
    query = _function(
        egl, "eglQueryDevicesEXT", ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32)
    )
    if not query(MAX_DEVICES, handles, ctypes.byref(count)):
        raise RuntimeError(f"eglQueryDevicesEXT failed with EGL error {egl.eglGetError():#x}")
    return {"devices": [_device(egl, handle) for handle in handles[: count.value]]}


def _device(egl: ctypes.CDLL, handle: int) -> dict:
    text = _function(
        egl, "eglQueryDeviceStringEXT", ctypes.c_void_p, ctypes.c_int32, result=ctypes.c_char_p
    )
    number = _function(
        egl,
        "eglQueryDeviceAttribEXT",
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.POINTER(ctypes.c_ssize_t),
    )
    extensions = (text(handle, EGL_EXTENSIONS) or b"").split()
    cuda, file = ctypes.c_ssize_t(), None
    has_cuda = b"EGL_NV_device_cuda" in extensions and number(
        handle, EGL_CUDA_DEVICE_NV, ctypes.byref(cuda)
    )
    if b"EGL_EXT_device_drm" in extensions:
        file = (text(handle, EGL_DRM_DEVICE_FILE_EXT) or b"").decode() or None
    return {
        "cuda": cuda.value if has_cuda else None,
        "software": b"EGL_MESA_device_software" in extensions,
        "file": file,
    }


def _function(egl: ctypes.CDLL, name: str, *arguments, result=ctypes.c_uint32):
    """An extension function of EGL; every implementation that has devices has these."""
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(name.encode())
    if not address:
        raise RuntimeError(f"this EGL has no {name}")
    return ctypes.CFUNCTYPE(result, *arguments)(address)


if __name__ == "__main__":
    child.answer({"frame": frame, "devices": devices}[sys.argv[1]])
