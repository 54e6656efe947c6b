"""Where logits and masks are kept: predictions are the same in every place, and places that are too small are left."""

import errno
import os
import tempfile

import pytest
import torch
from monai.inferers import sliding_window_inference

from segkit import Labels
from segkit.inference import memory, storage
from segkit.inference.ensemble import Ensemble
from segkit.inference.memory import PredictionMemoryError
from segkit.inference.predictor import Predictor
from segkit.inference.storage import Storage, fitting_storages, storages

CPU = torch.device("cpu")
LABELS = Labels(["background", "a", "b"])
SIZE, WINDOW = (30, 25, 40), (16, 16, 16)


@pytest.fixture
def image():
    return torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 3, padding=1).eval()


@pytest.fixture
def used(monkeypatch):
    """The places in which tensors are made."""
    seen, zeros = [], Storage.zeros
    monkeypatch.setattr(Storage, "zeros", lambda place, *args: (seen.append(place), zeros(place, *args))[1])
    return seen


def no_room(monkeypatch, free):
    """Pretend that so many bytes are free."""
    monkeypatch.setattr(storage, "free_bytes", lambda _device: free)


@pytest.fixture
def all_estimated(monkeypatch):
    monkeypatch.setattr("segkit.inference.predictor.SMALL", 0)


def monai_logits(network, image):
    return sliding_window_inference(image[None], WINDOW, 1, network, overlap=0.5, mode="gaussian")


@pytest.mark.usefixtures("all_estimated")
@pytest.mark.parametrize("free", [10**9, 10**5])
def test_logits_are_those_of_monai_in_memory_and_in_files(network, image, used, free, monkeypatch):
    no_room(monkeypatch, free)
    found = Predictor(network, LABELS, CPU, window=WINDOW).predict(image, SIZE, keep_logits=True)
    assert set(used) == {Storage(CPU, in_file=free < 10**6)}
    torch.testing.assert_close(found.logits, monai_logits(network, image), atol=1e-5, rtol=1e-5)
    assert torch.equal(found.mask, found.logits.argmax(1).to(found.mask.dtype))


@pytest.mark.usefixtures("all_estimated")
@pytest.mark.parametrize("size", [SIZE, (35, 20, 50)])
def test_an_ensemble_with_disagreement_in_files_is_that_in_memory(network, image, used, size, monkeypatch):
    predictor = Predictor(network, LABELS, CPU, window=WINDOW)
    ensemble = Ensemble((predictor, predictor), (1.0, 2.0))
    expected = ensemble.predict([image, image], size, keep_logits=True)
    assert set(used) == {Storage(CPU)}
    used.clear()
    no_room(monkeypatch, 10**5)
    found = ensemble.predict([image, image], size, keep_logits=True)
    assert set(used) == {Storage(CPU, in_file=True)}
    torch.testing.assert_close(found.logits, expected.logits)
    assert torch.equal(found.mask, expected.mask)


def test_an_allocation_that_fails_is_followed_by_a_prediction_in_files(network, image, used, monkeypatch):
    expected = Predictor(network, LABELS, CPU, window=WINDOW).predict(image, SIZE)
    used.clear()
    zeros = Storage.zeros

    def short(place, *args):
        if not place.in_file:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return zeros(place, *args)

    monkeypatch.setattr(Storage, "zeros", short)
    with pytest.warns(UserWarning, match="out of memory: .* predicted again, with its logits in a temporary file"):
        found = Predictor(network, LABELS, CPU, window=WINDOW).predict(image, SIZE)
    assert set(used) == {Storage(CPU, in_file=True)}
    assert torch.equal(found.mask, expected.mask)
    assert found.nonfinite == 0


def test_pixels_that_are_not_finite_are_counted_once_although_the_image_is_predicted_twice(image):
    class Broken(torch.nn.Module):
        passes = 0

        def forward(self, image):
            Broken.passes += 1
            if Broken.passes == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch.full((len(image), 3, *image.shape[2:]), float("nan"))

    with pytest.warns(UserWarning, match="out of memory"):
        found = Predictor(Broken(), LABELS, CPU, window=(8, 30, 40), overlap=0.0).predict(image, SIZE)
    assert found.nonfinite == image.numel()


@pytest.mark.usefixtures("all_estimated")
def test_a_disk_without_room_is_named(network, image, monkeypatch, tmp_path):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    no_room(monkeypatch, 10**5)
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    message = rf"file of 3e-05 GB.* in {tmp_path} \(No space left on device\).*TMPDIR"
    with pytest.raises(PredictionMemoryError, match=message):
        Predictor(network, LABELS, CPU, window=WINDOW).predict(image, SIZE)


def test_a_file_system_that_cannot_reserve_room_is_used_without(monkeypatch):
    def unsupported(*_arguments):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert not Storage(CPU, in_file=True).zeros([4, 5]).any()


def test_files_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    tensor = Storage(CPU, in_file=True).zeros([2, 3, 5], torch.uint8)
    assert list(tmp_path.iterdir()) == []
    assert tensor.shape == (2, 3, 5)
    assert tensor.dtype == torch.uint8
    assert not tensor.any()
    tensor.add_(7)
    assert (tensor == 7).all()


def test_places_are_chosen_by_the_memory_of_each_device(monkeypatch):
    cuda = torch.device("cuda")
    free = {"cuda": 10, "cpu": 100}
    monkeypatch.setattr(storage, "free_bytes", lambda device: free[device.type])
    on_device, in_memory, in_file = storages(cuda)
    assert fitting_storages(cuda, 8, reserved=1) == [on_device, in_memory, in_file]
    assert fitting_storages(cuda, 8, reserved=3) == [in_memory, in_file]  # beside a pass it does not fit
    assert fitting_storages(cuda, 101, reserved=0) == [in_file]
    assert storages(CPU) == [Storage(CPU), Storage(CPU, in_file=True)]
    monkeypatch.setattr(storage, "free_bytes", lambda _device: None)
    assert fitting_storages(cuda, 1e15, reserved=0)[0] == on_device  # whose memory is not known


@pytest.mark.usefixtures("all_estimated")
def test_the_estimate_of_what_is_stored_is_what_is_made(network, image, monkeypatch):
    made, zeros = [], Storage.zeros

    def counted(place, *args):
        tensor = zeros(place, *args)
        made.append(tensor.numel() * tensor.itemsize)
        return tensor

    asked = []
    monkeypatch.setattr(Storage, "zeros", counted)
    monkeypatch.setattr(
        "segkit.inference.predictor.fitting_storages",
        lambda device, needed, reserved: (asked.append((needed, reserved)), storages(device))[1],
    )
    predictor = Predictor(network, LABELS, CPU, window=WINDOW)
    predictor.predict(image, (35, 20, 50), keep_logits=True)
    ((needed, reserved),) = asked
    assert needed == sum(made)
    passed = 2 * 16**3 * memory.WORKSPACE * 3 * 4  # two windows, three logits each
    assert reserved == pytest.approx(passed)


@pytest.mark.cuda
def test_a_prediction_in_the_main_memory_is_that_on_the_device(network, image, monkeypatch):
    cuda = torch.device("cuda")
    predictor = Predictor(network.to(cuda), LABELS, cuda, window=WINDOW)
    expected = predictor.predict(image, SIZE, keep_logits=True)
    assert expected.mask.is_cuda
    monkeypatch.setattr("segkit.inference.predictor.storages", lambda device: storages(device)[1:])
    found = predictor.predict(image, SIZE, keep_logits=True)
    assert not found.mask.is_cuda
    torch.testing.assert_close(found.logits, expected.logits.cpu(), atol=1e-4, rtol=1e-4)
