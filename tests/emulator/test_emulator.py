"""The emulator itself: it runs what CUDA allows and notices what it forbids."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from tests.emulator import build
from tests.emulator.translate import translate

needs_emulator = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run() -> Run:
    library = ctypes.CDLL(str(build.build_features()))
    library.run_feature.restype = ctypes.c_char_p

    def run(name: str, threads: int = 1) -> str:
        library.emulator_configure(threads, 0, ctypes.c_uint64(1), 0xFF)
        return str(library.run_feature(name.encode()).decode())

    return run


@pytest.mark.slow
@needs_emulator
@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize(
    "name", ["launches", "shuffles", "votes", "shared", "wide", "grid", "much shared memory"]
)
def test_runs_what_cuda_allows(run: Run, name: str, threads: int) -> None:
    assert run(name, threads) == ""


@needs_emulator
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("misaligned", "a misaligned access at features.cu:"),
        ("no barrier", "read before it was written"),
        ("diverged", "lanes of one warp meet in different places"),
        ("different barriers", "threads meet in different __syncthreads"),
        ("left alone", "__syncthreads after some threads of the block have ended"),
        ("missing lane", "a mask names a lane that does not exist"),
        ("beyond shared", "shared memory was written beyond its end"),
        ("beyond array", "an index beyond an array at features.cu:"),
        ("not there", "an access to memory that is not there, at 0x1000"),
        ("big shift", "a shift by too much at features.cu:"),
        ("too much shared memory", "more dynamic shared memory than cudaFuncSetAttribute has allowed"),
        ("another stream", "not launched on the current stream"),
        ("nothing", "a launch of nothing"),
    ],
)
def test_notices_what_cuda_forbids(run: Run, name: str, message: str) -> None:
    assert message in run(name)


@pytest.mark.parametrize(
    ("source", "kernel"),
    [
        ("f<<<1, 2>>>(x);", "f"),
        ("return detector::f<T, (a > b), Mode::x>  <<<g, b>>>(x);", "detector::f<T, (a > b), Mode::x>"),
        ("(*kernel)<<<g, b>>>(x);", "(*kernel)"),
        ("jobs[i].kernel<<<g, b>>>(x);", "jobs[i].kernel"),
        ("if (wide) f<A<B<C>>><<<g, b>>>(x);", "f<A<B<C>>>"),
        ("choose(a, b)<<<g, b>>>(x);", "choose(a, b)"),
    ],
)
def test_finds_the_kernel_of_a_launch(source: str, kernel: str) -> None:
    assert f'emulator::prepare("{kernel}", ' in translate(source, "a.cu")
