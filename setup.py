"""The optional C extension, and nothing else: everything static stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "whimbrel_kernels._native",
            sources=[
                f"cext/src/{name}.c"
                for name in ("module", "ring", "lanes", "rotate", "chacha20", "chacha20_x86", "gf16", "paths")
            ],
            depends=["cext/src/kernels.h", "cext/src/chacha20.h"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-std=c11", "-O3", "-fvisibility=hidden"],
            py_limited_api=True,
            optional=True,  # without a compiler the NumPy twin runs
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
