"""Options that have no meaning and outputs that no disk takes are refused in a sentence, before anything is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from unet_core import places
from unet_core.errors import InputError, JobError
from unet_core.job import make_job
from unet_core.places import check_size, check_writable


def job(**fields: Any) -> Any:
    return make_job(**({"image": "image.zarr", "output": "out.zarr", "model": "nuclei-he"} | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"voxel_size_um": (1e-320, 1)}, "voxel_size_um.0: .* 0.000001"),
        ({"voxel_size_um": (1, 1e300)}, "voxel_size_um.1: .* 1000000 "),
        ({"voxel_size_um": (1, float("nan"))}, "voxel_size_um.1: "),
        ({"memory_gib": 1e308}, "memory_gib: "),
        ({"memory_gib": float("inf")}, "memory_gib: "),
        ({"threads": 10**6}, "threads: "),
        ({"devise": "cpu"}, "did you mean 'device'"),
        ({"output": ""}, "Output is ''; give a path"),
        ({"image": " "}, "Image is ' '; give a path"),
        ({"model": "a\0b"}, "Model is 'a.x00b'; give a path"),
        ({"output": "~nosuchuser/x"}, "home directory that does not exist"),
        ({"model": "~nosuchuser/x"}, "home directory that does not exist"),
    ],
)
def test_options_without_meaning_are_refused_in_a_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        job(**fields)
    assert "\n" not in str(refused.value)
    assert "tuple[" not in str(refused.value)


def test_output_and_model_never_share_a_place(tmp_path: Path) -> None:
    model = tmp_path / "folder" / "model"
    model.mkdir(parents=True)
    for output in (model, model / "out", model.parent):
        with pytest.raises(JobError, match="model"):
            job(output=str(output), model=str(model))
    assert job(output="nuclei-he/out").model == "nuclei-he"  # a bundled model is no folder here
    with pytest.raises(JobError, match="lie inside each other"):
        job(image="i.zarr", output="s3://b/m/out", model="s3://b/m/")


def test_outputs_that_cannot_be_written_are_refused_with_what_is_in_the_way(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("important")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for output, words in [
        (file, "is a file"),
        (file / "deep" / "out", f"{file} is a file"),
        (tmp_path / "dangling", "a link to nothing"),
        ("/proc/x.zarr", "/proc"),
        (tmp_path / ("n" * 300), "name of more than 255 bytes"),
        (tmp_path / "new" / ("n" * 300), "name of more than 255 bytes"),
    ]:
        with pytest.raises(JobError, match=words):
            check_writable(str(output))
    check_writable(str(tmp_path / "new" / "out"))
    check_writable(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.geteuid() and "pytest" in folder.name:
            folder.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write everywhere; nobody may not
    try:
        with pytest.raises(JobError, match="takes no files .Permission denied"):
            check_writable(str(tmp_path / "out"))
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_sizes_that_no_disk_takes_are_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match=r"would be 2,000.0 PiB .* limit 1 PiB"):
        check_size("s3://bucket/out", 2000 << 50)
    free = places.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda folder: free._replace(free=1 << 30))
    check_size(str(tmp_path / "out"), 40 << 30)
    with pytest.raises(JobError, match=r"would be 60.0 GiB before compression, .* has 1.00 GiB free"):
        check_size(str(tmp_path / "out"), 60 << 30)
