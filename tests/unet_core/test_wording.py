"""What messages say: things that are counted, and what was meant by a name that leads nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet_core.wording import counted, near_path, near_word


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (1, ("channel",), "1 channel"),
        (0, ("channel",), "0 channels"),
        (2, ("entry", "entries"), "2 entries"),
        (1, ("entry", "entries"), "1 entry"),
    ],
)
def test_one_is_one(count: int, words: tuple[str, ...], expected: str) -> None:
    assert counted(count, *words) == expected


def test_the_nearest_name_is_told_and_no_other(tmp_path: Path) -> None:
    assert near_word("nuclei-hee", ["nuclei-he", "membranes"]) == " (did you mean 'nuclei-he'?)"
    assert near_word("cats", ["nuclei-he", "membranes"]) == ""
    (tmp_path / "slide.zarr").mkdir()
    assert near_path(tmp_path / "slides.zarr") == f" (did you mean {tmp_path / 'slide.zarr'}?)"
    assert near_path(tmp_path / "no" / "slide.zarr") == f" (there is no folder {tmp_path / 'no'} either)"
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert "symbolic link" in near_path(tmp_path / "link")
