"""Package metadata.  Exact pins of the tested environment stand in requirements.txt."""

import setuptools

setuptools.setup(
    name="pirl_jax",
    version="0.1.0",
    description="Online reinforcement learning of pi0 and pi0.5 vision-language-action policies in JAX",
    packages=setuptools.find_packages(include=["pirl_jax", "pirl_jax.*"]),
    python_requires=">=3.11,<3.13",
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "chex",
        "ml_collections>=1.1",
        "absl-py",
        "ml_dtypes",
        "numpy>=2",
        "scipy",
        "mujoco==3.3.7",
        "pillow",
        "opencv-python-headless",
        "fast-simplification",
        "gymnasium",
        "packaging",
        "matplotlib",
        "msgpack",
        "websockets",
        "sentencepiece",
        "tensorboardX",
        "imageio-ffmpeg",
        "rich",
        "psutil",
    ],
)
