"""The command `doctor` finds what is wrong with a machine, and says what to do."""

from collections import namedtuple
from importlib import metadata

import pytest
import torch
from packaging.requirements import Requirement

from segkit.commands import doctor

from support.command_line import tool


def advice(check):
    return {finding.name: finding.advice for finding in check()}


def test_the_command_shows_everything(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(doctor, "CHECKS", (*doctor.CHECKS, lambda: [doctor.Finding("odd", "value", "mend it")]))
    printed = tool("doctor", code=1)
    assert "odd: mend it" in printed
    for name in ("segkit", "Python", "torch", "cores, threads", "GPU", "memory", "open files"):
        assert name in printed
    assert torch.__version__.partition("+")[0] in printed


def test_old_and_missing_packages_are_named():
    (old,) = doctor._package(Requirement("numpy>=999"))
    assert old.advice == "segkit needs numpy>=999: pip install 'numpy>=999'"
    (missing,) = doctor._package(Requirement("no-such-package>=1"))
    assert (missing.value, missing.advice) == ("missing", "pip install 'no-such-package>=1'")
    assert list(doctor._package(Requirement("numpy>=1"))) == [], "nothing to say"


def test_extras_are_those_of_the_package(monkeypatch):
    assert {"medical", "tiff", "encoders"} <= set(doctor._extras())
    assert "test" not in doctor._extras()
    version = metadata.version

    def without_nibabel(name):
        if name == "nibabel":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.metadata, "version", without_nibabel)
    assert not doctor._has_extra("medical")
    assert doctor._has_extra("tiff")


def test_two_packages_with_the_same_module(monkeypatch):
    Distribution = namedtuple("Distribution", "metadata")
    installed = [Distribution({"Name": name}) for name in ("OpenCV-Python", "opencv-python-headless", "torch")]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: installed)
    (finding,) = doctor.conflicts()
    assert "pip uninstall opencv-python opencv-python-headless" in finding.advice


@pytest.mark.parametrize(
    ("threads", "variable", "words"),
    [(1, "1", "is 1: unset it"), (4, None, None), (2, None, None), (9, None, "set OMP_NUM_THREADS=4")],
)
def test_threads_and_cores(monkeypatch, threads, variable, words):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _process: set(range(4)))
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: threads)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    found = advice(doctor.processor)["cores, threads"]
    assert found is None if words is None else words in found


@pytest.mark.parametrize(("cuda", "words"), [(None, "for CPUs"), ("13.0", "built for CUDA 13.0")])
def test_a_driver_without_a_device(monkeypatch, cuda, words):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    assert words in advice(doctor.devices)["GPU"]
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    assert advice(doctor.devices)["GPU"] is None


def test_a_processor_with_two_threads_a_core_needs_one_each(monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _process: set(range(16)))
    monkeypatch.setattr(doctor.psutil, "cpu_count", lambda **_options: 8)
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert advice(doctor.processor)["cores, threads"] is None


def test_a_check_that_fails_does_not_hide_the_others(monkeypatch):
    def devices():
        yield doctor.Finding("GPU", "one")
        raise RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(doctor, "CHECKS", (devices, doctor.disks))
    printed = tool("doctor", code=1)
    assert "cannot be found out (RuntimeError: CUDA error: out of memory" in printed
    assert "open files" in printed


def test_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", missing)
    assert advice(doctor.software)[doctor.PACKAGE] == "install it: pip install -e ."


def test_little_memory_and_little_room(monkeypatch):
    Usage = namedtuple("Usage", "total free")
    monkeypatch.setattr(doctor, "available", lambda: 2e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _folder: Usage(64e6, 1e9))
    assert "loader.cache=disk" in advice(doctor.memory)["memory"]
    assert "--shm-size" in advice(doctor.memory)["shared memory"]
    found = advice(doctor.disks)
    assert "TMPDIR" in found["temporary files"]
    assert "room" in found["disk of this folder"]
