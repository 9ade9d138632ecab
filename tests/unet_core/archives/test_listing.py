"""Which images an archive has and what their results are called: the same on a disk and on an object store, never two of one name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tifffile
import zarr

from tests.conftest import DATA, needs_data
from unet_core.archives.listing import list_images
from unet_core.errors import InputError, JobError
from unet_core.ledger import PLAN_KEY
from unet_core.store import open_store


def put(root: str, *keys: str) -> None:
    for key in keys:
        open_store(root).put(key, b"x")


@pytest.fixture(params=["folder", "prefix"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "in") if request.param == "folder" else f"{request.getfixturevalue('bucket')}/in"


TREE = ("a.tif", "b.PNG", "notes.txt", ".hidden.tif", "day 1/c.ome.tif", "day 1/deep/d.svs", "e.zarr/.zgroup", "e.zarr/0/0.tif")


def test_every_image_below_a_folder_is_found_and_what_is_inside_one_is_none(root: str) -> None:
    put(root, *TREE, f"old.zarr/{PLAN_KEY}", "old.zarr/zarr.json", "old.zarr/thumbnail.png")
    listing = list_images(root)
    found = {item.image.removeprefix(f"{root}/"): item.name for item in listing.items}
    assert found == {
        "a.tif": "a.zarr",
        "b.PNG": "b.zarr",
        "day 1/c.ome.tif": "day 1-c.zarr",
        "day 1/deep/d.svs": "day 1-deep-d.zarr",
        "e.zarr": "e.zarr",
    }
    assert listing.passed_over == {".txt": 1, "results of unet segment": 1}
    assert list_images(f"{root}/").items == listing.items


@pytest.mark.parametrize(
    ("pattern", "images", "names"),
    [
        ("*.tif", ["a.tif"], ["a.zarr"]),
        ("**/*.tif", ["a.tif", "day 1/c.ome.tif"], ["a.zarr", "day 1-c.zarr"]),
        ("day*/*/d.svs", ["day 1/deep/d.svs"], ["day 1-deep-d.zarr"]),
        ("day?1", ["day 1/c.ome.tif", "day 1/deep/d.svs"], ["day 1-c.zarr", "day 1-deep-d.zarr"]),
        ("notes.*", ["notes.txt"], ["notes.txt.zarr"]),  # who names a file means it
        (".hid*.tif", [".hidden.tif"], [".hidden.zarr"]),
    ],
)
def test_a_glob_means_what_matches(root: str, pattern: str, images: list[str], names: list[str]) -> None:
    put(root, *TREE)
    items = list_images(f"{root}/{pattern}").items
    assert [item.image for item in items] == [f"{root}/{image}" for image in images]
    assert [item.name for item in items] == names


@pytest.mark.parametrize(
    ("one", "other"), [("a.tif", "a.png"), ("a-b.tif", "a/b.tif"), ("A.tif", "a.tif"), ("caf\u00e9.tif", "cafe\u0301.tif")]
)
def test_two_results_of_one_name_are_refused_with_both_images(root: str, one: str, other: str) -> None:
    put(root, one, other)
    with pytest.raises(JobError, match="would both have the result") as refused:
        list_images(root)
    assert {f"{root}/{one}", f"{root}/{other}"} <= set(str(refused.value).replace(" and", "").split())


def test_a_place_without_images_is_refused(root: str, tmp_path: Path) -> None:
    put(root, "notes.txt")
    with pytest.raises(JobError, match="No image found in .*no images: 1 .txt"):
        list_images(root)
    with pytest.raises(JobError, match="Images not found: .*check the path"):
        list_images(str(tmp_path / "nowhere"))
    with pytest.raises(JobError, match="No image found"):
        list_images(f"{root}/*.tif")


def test_what_is_passed_over_is_told_in_few_words(tmp_path: Path) -> None:
    put(str(tmp_path), "a.tif", *(f"scan.{number:04}" for number in range(500)), "x.txt", "y.txt")
    (note,) = list_images(str(tmp_path)).notes()
    assert note.startswith("Passed over, no images: 1 .0000, ")
    assert note.endswith("2 .txt, 489 others.")


@pytest.mark.parametrize("pattern", ["", "/**/*.tif", "/**"])
def test_each_image_is_found_once_however_many_links_lead_to_its_folder(pattern: str, tmp_path: Path) -> None:
    """Loops of two links in one folder would be walked 2**40 times."""
    root = tmp_path / "in"
    put(str(root), "day 1/a.tif", "day 2/b.tif", ".kept/c.tif")
    put(str(tmp_path / "other"), "d.tif", "deep/e.tif")
    links = {
        "again": ".",
        "day 1/up": "..",
        "latest": "day 2",
        "linked": ".kept",
        "more": "../other",
        "more/back": "../in",
        "z": "day 1",
    }
    for place, target in links.items():
        (root / place).symlink_to(target)
    (root / "link.tif").symlink_to("day 1/a.tif")  # of a file: a collection may consist of such
    listing = list_images(f"{root}{pattern}")
    names = ["day 1-a", "day 2-b", "link", "linked-c", "more-d", "more-deep-e"]
    assert [item.name.removesuffix(".zarr") for item in listing.items] == names
    assert listing.passed_over["links to folders that are listed"] >= 5
    (tmp_path / "root").symlink_to(root)
    assert len(list_images(f"{tmp_path / 'root'}{pattern}").items) == len(names)


def write_plate(path: Path) -> None:
    plate = zarr.create_group(path, zarr_format=2)
    plate.attrs["plate"] = {
        "wells": [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}, {"path": "B/3", "rowIndex": 1, "columnIndex": 1}],
        "rows": [{"name": "A"}, {"name": "B"}],
        "columns": [{"name": "1"}, {"name": "3"}],
    }
    for well in ("A/1", "B/3"):
        group = plate.create_group(well)
        group.attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
        for field in "01":
            image = group.create_group(field)
            image.create_array("0", data=np.zeros((5, 7), np.uint8))


def test_a_plate_has_an_image_for_each_field_also_among_others(tmp_path: Path) -> None:
    write_plate(tmp_path / "in/plate.zarr")
    tifffile.imwrite(tmp_path / "in/a.tif", np.zeros((5, 7), np.uint8))
    items = list_images(str(tmp_path / "in/plate.zarr")).items
    assert [item.name for item in items] == ["A-1-0.zarr", "A-1-1.zarr", "B-3-0.zarr", "B-3-1.zarr"]
    assert items[2].image == str(tmp_path / "in/plate.zarr/B/3/0")
    names = [item.name for item in list_images(str(tmp_path / "in")).items]
    assert names == ["a.zarr", "plate-A-1-0.zarr", "plate-A-1-1.zarr", "plate-B-3-0.zarr", "plate-B-3-1.zarr"]
    assert [item.name for item in list_images(str(tmp_path / "in/plate.zarr/B/3")).items] == ["0.zarr", "1.zarr"]


@needs_data
def test_the_plate_of_bioformats2raw_has_its_eight_fields() -> None:
    items = list_images(str(DATA / "omezarr/bioformats2raw_v04/hcs.zarr")).items
    assert [item.name for item in items] == [f"{row}-{column}-{field}.zarr" for row in "AB" for column in "12" for field in "01"]


ROWS: list[dict[str, Any]] = [
    {"image": "a.tif", "output": "", "voxel_size": "0.5,0.25", "owner": "ann", "project": "liver"},
    {"image": "sub/b.tif", "output": "second", "voxel_size": "", "owner": "", "project": ""},
]


@pytest.mark.parametrize("kind", ["list.csv", "semicolons.csv", "list.parquet"])
def test_a_list_says_more_of_each_image_and_its_paths_begin_beside_it(root: str, kind: str) -> None:
    if kind.endswith(".parquet"):
        lengths = [[0.5, 0.25], None]
        stream = io.BytesIO()
        table = [row | {"voxel_size": size, "output": row["output"] or None} for row, size in zip(ROWS, lengths, strict=True)]
        pyarrow.parquet.write_table(pa.Table.from_pylist(table), stream)
        data = stream.getvalue()
    elif kind == "list.csv":
        lines = [",".join(ROWS[0]), 'a.tif,,"0.5,0.25",ann,liver', "sub/b.tif,second", ""]
        data = b"\xef\xbb\xbf" + "\r\n".join(lines).encode()
    else:
        data = b"image;output;voxel_size;owner;project\na.tif;;0.5,0.25;ann;liver\nsub/b.tif;second.zarr;;;\n"
    open_store(root).put(kind, data)
    first, second = list_images(f"{root}/{kind}").items
    assert (first.image, first.name, first.options) == (f"{root}/a.tif", "a.zarr", {"voxel_size_um": (0.5, 0.25)})
    assert (first.owner, first.project) == ("ann", "liver")
    assert (second.image, second.name, second.options) == (f"{root}/sub/b.tif", "second.zarr", {})


def listed(tmp_path: Path, name: str, data: bytes) -> list[tuple[str, dict[str, Any]]]:
    (tmp_path / name).write_bytes(data)
    return [(Path(item.image).name, item.options) for item in list_images(str(tmp_path / name)).items]


@pytest.mark.parametrize(
    "data",
    [
        b"image;level;;\na.tif;1;;\n;;;\nb.tif;;;\n;;;\n",  # columns and rows that a spreadsheet once had
        b"image,level\ra.tif,1\rb.tif,\r",
        b'"image",level\r\n"a.tif", 1\r\n\r\nb.tif\r\n',
        b"image\tlevel\na.tif\t1\nb.tif\n",
    ],
)
def test_lists_are_read_as_programs_write_them(data: bytes, tmp_path: Path) -> None:
    assert listed(tmp_path, "list.csv", data) == [("a.tif", {"level": 1}), ("b.tif", {})]


def test_cells_of_parquet_may_be_bytes_lists_and_numbers(tmp_path: Path) -> None:
    stream = io.BytesIO()
    row = {
        "image": b"a.tif",
        "roi": ["0:5,0:7", "8:9,0:7"],
        "channels": [2, 0],
        "level": 1.0,
        "voxel_size": [0.5, 2.0],
        "owner": float("nan"),
    }
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), stream)
    options = {"roi": ("0:5,0:7", "8:9,0:7"), "channels": (2, 0), "level": 1, "voxel_size_um": (0.5, 2.0)}
    assert listed(tmp_path, "list.parquet", stream.getvalue()) == [("a.tif", options)]


BAD = [
    ("image;voxel_size\na.tif;1,5\n", "voxel_size in row 1 .* is '1,5': in a list with semicolons"),
    ('image,owner\n"a.tif,ann\nb.tif,bob\n', "is no table from line 3 on"),
    ("image\n" + "a" * 200_000, "is no table from line 2 on"),
    ("image,voxelsize\na.tif,1\n", "Column 'voxelsize' .*did you mean 'voxel_size'"),
    ("file\na.tif\n", "Column 'file' .* is not known"),
    ("owner\nann\n", "has no column 'image'"),
    ("image,level\na.tif,fine\n", "level in row 1 .* is 'fine'"),
    ("image,output\na.tif,x/y\n", "output in row 1 .* without slashes"),
    ("image,output\na.tif,..\n", "begins with no dot"),
    ("image,owner\n,ann\n", "row 1 .* names no image"),
    ("image\na.tif,0.5,0.5\n", "row 1 .* has 3 cells"),
    ("image,output\na.tif,x\nb.tif,x\n", "would both have the result x.zarr"),
    ("image,output\na.tif,\na.tif,\n", "would both have the result a.zarr"),
    ("image,image\na.tif,b\n", "names a column twice"),
    ("image\n", "No image found"),
    ("", "No image found"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_a_list_that_cannot_be_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        list_images(str(tmp_path / "list.csv"))
    with pytest.raises(InputError, match="List of images not found.*did you mean"):
        list_images(str(tmp_path / "lsit.csv"))
    (tmp_path / "list.parquet").write_text(text)
    with pytest.raises(InputError, match="no readable Parquet"):
        list_images(str(tmp_path / "list.parquet"))
