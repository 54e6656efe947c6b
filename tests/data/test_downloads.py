"""Downloads of public data sets: the real download code on archives from a local server."""

import hashlib
import http.server
import json
import shutil
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest
import torchvision.datasets
from monai.apps.datasets import DecathlonDataset
from ruamel.yaml import YAML
from torchvision.datasets.voc import DATASET_YEAR_DICT

from segkit.data import DataError
from segkit.data.downloads import DECATHLON, VOC_YEARS, download

from support.command_line import tool
from support.layouts import NAMES, classes, colours, msd, save, voc


@pytest.fixture
def served(tmp_path):
    """A folder and the address of a local server that serves its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def archive(served, content, root, ending):
    """Pack a folder into an archive in the served folder. Returns its address and MD5."""
    folder, address = served
    file = folder / f"{Path(root).name}.{ending}"
    with tarfile.open(file, "w:gz" if ending.endswith("gz") else "w") as tar:
        tar.add(content, root)
    return f"{address}/{file.name}", hashlib.md5(file.read_bytes()).hexdigest()


def msd_archive(served, folder, monkeypatch):
    msd(folder)
    content = json.loads((folder / "dataset.json").read_text())
    metadata = dict.fromkeys(
        ("name", "description", "reference", "licence", "tensorImageSize", "numTraining", "numTest"), ""
    )
    (folder / "dataset.json").write_text(json.dumps({**metadata, "modality": {"0": "MRI"}, "test": [], **content}))
    address, digest = archive(served, folder, "Task04_Hippocampus", "tar")
    monkeypatch.setitem(DecathlonDataset.resource, "Task04_Hippocampus", address)
    monkeypatch.setitem(DecathlonDataset.md5, "Task04_Hippocampus", digest)
    return "Task04_Hippocampus"


def voc_archive(served, folder, monkeypatch):
    voc(folder)
    (folder / "ImageSets/Segmentation/trainval.txt").write_text("\n".join(NAMES))
    address, digest = archive(served, folder, "VOCdevkit/VOC2012", "tar")
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "url", address)
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "md5", digest)
    return "voc2012"


def pets_archive(served, folder, monkeypatch):
    for name in NAMES:
        save(folder / f"images/{name}.jpg", colours(name))
        save(folder / f"annotations/trimaps/{name}.png", 1 + classes(name))
    (folder / "annotations/trainval.txt").write_text("".join(f"{name} 1 1 1\n" for name in NAMES))
    archives = [archive(served, folder / part, part, "tar.gz") for part in ("images", "annotations")]
    monkeypatch.setattr(torchvision.datasets.OxfordIIITPet, "_RESOURCES", archives)
    return "oxford_pets"


@pytest.mark.parametrize("make", [msd_archive, voc_archive, pets_archive])
def test_a_downloaded_data_set_can_be_inspected_and_previewed(tmp_path, served, monkeypatch, make):
    name, target = make(served, tmp_path / "made", monkeypatch), tmp_path / "data"
    assert str(target / name) in "".join(tool("data", "download", name, target).split("\n"))
    assert [path.name for path in target.iterdir()] == [name]
    tool("data", "inspect", target / name, "--out", tmp_path / "my.yaml")
    assert len(YAML(typ="safe").load(tmp_path / "my.yaml")["labels"]["names"]) >= 3
    tool("data", "preview", "--config", tmp_path / "my.yaml", "--out", tmp_path / "preview.png")
    shutil.rmtree(served[0])  # an existing data set is not downloaded again
    assert download(name, target) == target / name


def test_an_archive_with_another_checksum_is_refused(tmp_path, served, monkeypatch):
    name = msd_archive(served, tmp_path / "made", monkeypatch)
    monkeypatch.setitem(DecathlonDataset.md5, name, "0" * 32)
    with pytest.raises(DataError, match=rf"{name} .*hash check"):
        download(name, tmp_path / "data")
    monkeypatch.setitem(DecathlonDataset.resource, name, "http://127.0.0.1:9/nothing.tar")
    tool("data", "download", name, tmp_path / "data", code=3)
    assert not list((tmp_path / "data").iterdir())


def test_names_equal_those_of_the_libraries(tmp_path):
    assert set(DECATHLON) == set(DecathlonDataset.resource)
    assert set(VOC_YEARS) <= set(DATASET_YEAR_DICT)
    with pytest.raises(DataError, match=r"expected one of Task01_BrainTumour, .*oxford_pets, got coco"):
        download("coco", tmp_path)
