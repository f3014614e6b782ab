"""The kernels read and write only what is theirs, and do nothing that C++ leaves undefined.

The library is built again with the sanitizers of addresses and of undefined behaviour, and the
other tests of this folder run with it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
COMPILER = os.environ.get("CXX", "c++")
kernels = pytest.importorskip("engine_cpu_kernels", reason="the native kernels are not there")
FILES = ("test_linear.py", "test_attention_kernels.py", "test_quantized.py", "test_pointwise.py")


def runtime(name: str) -> Path | None:
    """The compiler's library, which must be loaded before anything else."""
    if not shutil.which("cmake") or not shutil.which(COMPILER):
        return None
    asked = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True)
    found = Path(asked.stdout.strip())
    return found if found.is_absolute() and found.exists() else None


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if runtime("libasan.so") is None or runtime("libubsan.so") is None:
        pytest.skip("cmake, a C++ compiler or its sanitizers are not there")
    folder = tmp_path_factory.mktemp("sanitized")
    isa = kernels.isas()[0].replace("amx", "avx512bf16")  # of which it is a part
    options = ("-DENGINE_SANITIZE=ON", f"-DENGINE_ISAS={isa}", "-DCMAKE_BUILD_TYPE=Release")
    for command in (
        ["cmake", "-S", str(FOLDER.parent), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [found] = folder.glob("libengine_cpu_kernels.*")
    return found


def run(library: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    runtimes = [runtime("libasan.so"), runtime("libubsan.so")]
    changes = {
        "ENGINE_CPU_KERNELS_LIBRARY": str(library),
        "LD_PRELOAD": ":".join(str(one) for one in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter and torch leak, and mean to
        "OMP_NUM_THREADS": "2",
    }
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**os.environ, **changes},
    )


@pytest.mark.timeout(900)
def test_the_sanitizers_find_nothing(library: Path) -> None:
    files = [str(FOLDER / name) for name in FILES]
    options = ("-q", "-x", "-p", "no:cacheprovider", "-k", "not threads1 and not threads3")
    done = run(library, "-m", "pytest", *options, *files)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_they_would_find_a_write_beyond_the_end(library: Path) -> None:
    """A result with too little room: memory that is not torch's, which has blocks of its own."""
    done = run(
        library,
        "-c",
        """if True:
        import ctypes
        from engine_cpu_kernels import library
        lib = library()
        floats = ctypes.c_float * 33
        weight, panels = (ctypes.c_float * (33 * 64))(), (ctypes.c_float * (64 * 64))()
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        small = libc.malloc(32 * 4)
        x = (ctypes.c_float * 64)()
        address = lambda of: ctypes.addressof(of)
        lib.ek_linear_pack(address(weight), 64, address(panels), 64, 33, 0)
        lib.ek_linear(address(x), 64, address(panels), None, small, 33, 64, 33, 0, 0, 1)
        """,
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
