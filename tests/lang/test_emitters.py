"""Kernels compiled in other processes: the same objects, the same errors, nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ondevice.codegen.emit import emit_object, host_triple
from ondevice.codegen.emitters import Emitters, KernelJob
from ondevice.errors import ToolchainError
from ondevice.lang import f32, kernel, load, parallel, store
from ondevice.lang.specialize import specialize
from ondevice.lang.text import print_kernel


@kernel
def double(x: f32[S, 32], y: f32[S, 32]):
    for s in parallel(S):
        for k in range(0, 32, 16):
            store(y, s, k, load(x, s, k, lanes=16) + load(x, s, k, lanes=16))


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> KernelJob:
    monkeypatch.setenv("ONDEVICE_CACHE_DIR", str(tmp_path))
    made = specialize(double, {}, {})
    return KernelJob(made, print_kernel(made), "double", frozenset(), host_triple(), "")


def test_objects_are_those_of_this_process(job: KernelJob) -> None:
    emitters = Emitters()
    jobs = [replace(job, symbol=f"double_{i}") for i in range(5)]
    found = [future.result() for future in map(emitters.emit, jobs)]
    emitters.close()
    assert found == [emit_object(one.text(), one.triple, one.cpu) for one in jobs]
    assert all(child.returncode == 0 for child in emitters.children)


def test_what_is_kept_needs_no_process(job: KernelJob) -> None:
    first, second = Emitters(), Emitters()
    assert first.emit(job).result() == second.emit(job).result()
    for emitters in (first, second):
        emitters.close()
    assert [len(first.children), len(second.children)] == [1, 0]


def test_errors_arrive_and_the_next_job_runs(job: KernelJob) -> None:
    emitters = Emitters()
    with pytest.raises(ToolchainError, match="nowhere"):
        emitters.emit(replace(job, triple="nowhere")).result()
    assert emitters.emit(job).result()
    emitters.close()


def test_a_process_that_ends_is_an_error_and_another_one_starts(
    job: KernelJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitters = Emitters(most=1)
    emitters.emit(job).result()
    (child,) = emitters.children
    child.kill()
    child.wait()
    with monkeypatch.context() as patch, pytest.raises(ToolchainError, match="ended while it"):
        patch.setattr(child, "poll", lambda: None)  # it ends behind the look at it
        emitters.emit(replace(job, symbol="other")).result()
    assert emitters.emit(replace(job, symbol="other")).result()
    emitters.close()
