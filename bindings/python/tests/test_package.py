"""The installed package: what it loads, that it can be moved, and that its types are what it exports."""

import ast
import copy
import importlib.metadata
import importlib.util
import inspect
import os
import pathlib
import pickle
import pkgutil
import shutil
import subprocess
import sys

import foveal
import pytest

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


def stub(name):
    """What a .pyi file defines: functions with their parameters, and classes."""
    nodes = ast.parse((PACKAGE / name).read_text()).body
    return {
        node.name: [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if isinstance(node, ast.FunctionDef)
        else None
        for node in nodes
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


def public_stubs():
    """foveal's own functions and classes, some of which the extension has."""
    of_extension = {name: found for name, found in stub("_foveal.pyi").items() if found and name in foveal.__all__}
    return {**of_extension, **stub("_functions.pyi")}


def test_the_stubs_name_what_there_is():
    exported = {name for name in dir(foveal._foveal) if not name.startswith("_")}
    assert stub("_foveal.pyi").keys() == exported
    types = public_stubs()
    home = {name: value for name, value in vars(foveal).items() if getattr(value, "__module__", "") == "foveal"}
    errors = {name for name, value in home.items() if isinstance(value, type) and issubclass(value, foveal.Error)}
    assert types.keys() - {"DLPackTensor"} == home.keys() - errors
    for name, parameters in types.items():
        if parameters is not None:
            assert parameters == list(inspect.signature(getattr(foveal, name)).parameters), name
    assert (PACKAGE / "py.typed").exists()


def test_functions_can_be_copied_pickled_and_inspected():
    names = [name for name in foveal.__all__ if not isinstance(getattr(foveal, name), type)]
    for function in [getattr(foveal, name) for name in names]:
        assert copy.deepcopy(function) is function and pickle.loads(pickle.dumps(function)) is function
        assert inspect.signature(function) and inspect.getdoc(function)
    assert "causal=False" in str(inspect.signature(foveal.attention))
    x = ((1, 4, 2, 8), "float32")
    for answer in (foveal.supports(x, x, x), foveal.plan(x, x, x, backend="cpu")):
        for copied in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
            assert copied == answer and repr(copied) == repr(answer)


def public_functions():
    """(module, function) of every module that can be imported here."""
    for found in pkgutil.walk_packages([str(PACKAGE)], "foveal."):
        if found.name.rpartition(".")[2].startswith("_"):
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError:  # a framework that is not here
            continue
        for name in getattr(module, "__all__", ()):
            if inspect.isroutine(getattr(module, name)):
                yield found.name, getattr(module, name)
    for name in foveal.__all__:
        if inspect.isroutine(getattr(foveal, name)):
            yield "foveal", getattr(foveal, name)


def test_every_public_function_is_typed_and_documented():
    in_stubs = public_stubs()
    found = list(public_functions())
    assert {"foveal.attention", "foveal.merge"} <= {f"{module}.{function.__name__}" for module, function in found}
    for module, function in found:
        where = f"{module}.{function.__name__}"
        signature = inspect.signature(function)
        assert inspect.getdoc(function), where
        assert inspect.getmodule(function).__name__ == module, where
        if module == "foveal":  # their types stand in the stub, which test_the_stubs_name_what_there_is compares
            assert function.__name__ in in_stubs, where
            continue
        names = [name for name, parameter in signature.parameters.items() if parameter.annotation is parameter.empty]
        assert not names and signature.return_annotation is not signature.empty, f"{where}: {names}"


def test_types(tmp_path):
    if importlib.util.find_spec("mypy") is None or importlib.util.find_spec("numpy") is None:
        pytest.skip("SKIPPED: no mypy or no NumPy")
    program = tmp_path / "program.py"
    program.write_text("""
import foveal
import numpy as np

x: np.ndarray[tuple[int, int, int, int], np.dtype[np.float32]] = np.zeros((1, 4, 2, 8), np.float32)
out: np.ndarray[tuple[int, int, int, int], np.dtype[np.float32]] = foveal.attention(x, x, x, causal=True)
pair = foveal.attention(x, x, x, return_lse=True)
merged, lse = foveal.merge([pair[0]], [pair[1]])
answer: bool = bool(foveal.supports(((1, 4, 2, 8), "bfloat16"), x, x, backend="cpu"))
size: int = foveal.plan(x, x, x).workspace_bytes
foveal.attention(x, x, x, align="middle")
""")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)],
        text=True,
        stdout=subprocess.PIPE,
    ).stdout
    errors = [line for line in checked.splitlines() if ": error:" in line]
    assert len(errors) == 1 and "program.py:11" in errors[0], checked


def test_what_an_index_is_told():
    try:
        told = importlib.metadata.distribution("foveal")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("SKIPPED: foveal is not installed, but on the path")
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(told.metadata.get_all("Classifier"))
    assert told.metadata["License-Expression"] == "Apache-2.0"
    names = {pathlib.Path(file).name for file in told.files}
    assert {"LICENSE", "py.typed"} <= names


def test_number_of_threads(monkeypatch):
    monkeypatch.setenv("FOVEAL_NUM_THREADS", "3")
    assert foveal.get_num_threads() == 3
    foveal.set_num_threads(2)
    try:
        assert foveal.get_num_threads() == 2
        for wrong in (-1, 4097):
            with pytest.raises(foveal.InvalidArgument, match=f"threads is {wrong}"):
                foveal.set_num_threads(wrong)
        assert foveal.get_num_threads() == 2
    finally:
        foveal.set_num_threads(0)
    monkeypatch.setenv("FOVEAL_NUM_THREADS", "many")
    with pytest.raises(foveal.InvalidArgument, match="FOVEAL_NUM_THREADS is 'many'"):
        foveal.get_num_threads()


NAMES_OF_THREADS = """
import pathlib, time
import foveal
{array}
foveal.set_num_threads(2)
foveal.attention(q, q, q)
names = set()
for _ in range(50):  # a thread names itself once it runs
    names |= {{path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")}}
    time.sleep(0.02)
print(sorted(names))
"""


def test_whose_threads():
    def names(array):
        code = NAMES_OF_THREADS.format(array=array)
        return subprocess.run([sys.executable, "-c", code], text=True, check=True, stdout=subprocess.PIPE).stdout

    assert "'foveal'" in names("import numpy; q = numpy.ones((1, 256, 4, 64), numpy.float32)")
    if importlib.util.find_spec("torch") is None:
        pytest.skip("SKIPPED: no PyTorch")
    assert "'foveal'" not in names("import torch; q = torch.ones(1, 256, 4, 64)")


def test_in_a_child_of_fork_without_pytorchs_threads():
    pytest.importorskip("torch")
    code = """
import os, torch, foveal
foveal.set_num_threads(2)
q = torch.randn(1, 256, 4, 64)
out = foveal.attention(q, q, q)
child = os.fork()
if child == 0:
    os._exit(foveal.attention(q, q, q).numpy().tobytes() != out.numpy().tobytes())
_, status = os.waitpid(child, 0)
raise SystemExit(status)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_number_of_threads_follows_openmps_variable():
    code = "import foveal; print(foveal.get_num_threads())"
    env = {key: value for key, value in os.environ.items() if key != "FOVEAL_NUM_THREADS"} | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", code], env=env, text=True, check=True, stdout=subprocess.PIPE).stdout
    assert told == "1\n"


@pytest.mark.parametrize("forced", ["sm90", "tpu"])
def test_a_backend_in_the_environment_that_is_not_where_tensors_lie(monkeypatch, forced):
    np = pytest.importorskip("numpy", reason="SKIPPED: no NumPy")
    x, cache = np.ones((1, 4, 2, 8), np.float32), np.ones((4, 8, 2, 8), np.float32)
    lse, slots = np.zeros((1, 2, 4), np.float32), np.arange(4)
    calls = {
        "q": lambda: foveal.attention(x, x, x),
        r"outs\[0\]": lambda: foveal.merge([x], [lse]),
        "k": lambda: foveal.append(x[0], x[0], cache, cache.copy(), slot_mapping=slots),
    }
    for value in ("cpu", "auto", ""):
        monkeypatch.setenv("FOVEAL_BACKEND", value)
        for call in calls.values():
            call()
    monkeypatch.setenv("FOVEAL_BACKEND", forced)
    cache[:] = 3
    for tensor, call in calls.items():
        with pytest.raises(foveal.InvalidArgument, match=f'FOVEAL_BACKEND is "{forced}" but {tensor} is on the CPU'):
            call()
    assert (cache == 3).all()
