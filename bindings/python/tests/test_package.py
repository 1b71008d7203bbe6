"""The installed package: what it loads, that it can be moved, and that its types are what it exports."""

import ast
import pathlib
import shutil
import subprocess
import sys

import foveal

PACKAGE = pathlib.Path(foveal.__file__).parent


def test_moved_and_without_highway(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "foveal")
    code = """
import numpy as np, foveal
x = np.ones((1, 300, 4, 64), np.float32)
foveal.attention(x, x, x)
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libfoveal" in line or "libhwy" in line}
print("\\n".join(sorted(libraries)))
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, text=True, check=True,
        stdout=subprocess.PIPE,
    ).stdout.split()  # fmt: skip
    assert any("libfoveal" in path for path in loaded)
    assert all(path.startswith(str(tmp_path)) for path in loaded), loaded


def test_no_framework_is_linked():
    for library in [*PACKAGE.glob("*.so*"), *PACKAGE.glob("highway/*.so*")]:
        needed = subprocess.run(["ldd", str(library)], text=True, check=True, stdout=subprocess.PIPE).stdout
        assert "not found" not in needed
        assert not any(name in needed for name in ("torch", "libpython", "libcudart", "libcuda.so")), needed


def test_another_build_in_its_place():
    x = __import__("numpy").ones((1, 4, 2, 8), "float32")
    before = foveal._foveal.use_library(str(next(PACKAGE.glob("libfoveal.so*"))))
    try:
        assert (foveal.attention(x, x, x) == 1).all()
    finally:
        foveal._foveal.use_library(before)


def test_the_stub_names_what_there_is():
    tree = ast.parse((PACKAGE / "_foveal.pyi").read_text())
    stubbed = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    exported = {name for name in dir(foveal._foveal) if not name.startswith("_")} - {"HostBuffer"} | {"DLPackTensor"}
    assert stubbed == exported
    assert (PACKAGE / "py.typed").exists()
