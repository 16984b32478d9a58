"""The one thing that pyproject.toml cannot say yet: a C extension that may fail to build.

Without a compiler, installation goes on and the fast engine computes with NumPy, with the same bits.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "lapilli.sim.engine._kernels",
            sources=["sim/engine/kernels.c"],
            depends=["sim/engine/kernels_body.h"],
            extra_compile_args=["-O3"],
            optional=True,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # one wheel for Python 3.10 and later
)
