"""Which format a URL has, told by its content. Knows the formats by name only."""

from __future__ import annotations

from importlib import import_module
from typing import Literal

from unet_core.errors import VolumeError
from unet_core.store import CONVERSION_KEY, OWN_FOLDER, check_url, is_remote, local_path, open_store, storage_errors
from unet_core.volumes.protocol import Selection, Volume
from unet_core.volumes.range_file import open_object
from unet_core.volumes.slide import slide_vendor
from unet_core.volumes.zarr_metadata import read_document
from unet_core.volumes.zarr_nodes import DOCUMENTS
from unet_core.wording import counted, near_path

# A format is one file and one line here (and one line in _format_of): a function (url, selection) -> Volume.
FORMATS: dict[str, str] = {
    "zarr": "unet_core.volumes.ome_zarr:open_node",
    "tiff": "unet_core.volumes.tiff:open_tiff",
    "picture": "unet_core.volumes.picture:open_picture",
    "slide": "unet_core.volumes.slide:open_slide",
    "precomputed": "unet_core.volumes.precomputed:open_precomputed",
    "n5": "unet_core.volumes.n5:open_n5",
}

_HEAD_BYTES = 16
_PICTURES = (".svs", ".tif", ".tiff", ".ndpi", ".png", ".jpg", ".jpeg")
_READ = "Zarr, N5, precomputed, TIFF, SVS and other slides, PNG and JPEG"
_MAGIC = (
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\x89PNG\r\n\x1a\n", "picture"),
    (b"\xff\xd8\xff", "picture"),
)
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x89HDF", "an HDF5 file", "convert it to Zarr or TIFF"),
    (b"%PDF", "a PDF", "export the image as TIFF"),
    (b"<", "XML or HTML", "check the download"),
    (b"\x1f\x8b", "gzip data", "unpack it"),
)


def open_volume(
    url: str,
    level: int = 0,
    *,
    series: int | None = None,
    time: int | None = None,
    channels: tuple[int, ...] | None = None,
    missing: Literal["error", "fill"] = "error",
) -> Volume:
    """Open an image at one of its resolutions; reads metadata only.

    Args:
        url: local path, ``file://`` or ``s3://`` URL of a Zarr array, an OME-Zarr image (0.4, 0.5), an N5 dataset or group of scales, a
            Neuroglancer precomputed volume, a TIFF, OME-TIFF or SVS, a slide that OpenSlide reads, a PNG or a JPEG; may point inside a
            store.
        level: resolution, 0 the finest.
        series: which image of a file that holds several.
        time: which time point of an image with several.
        channels: which channels, in this order; all unless told.
        missing: what absent chunks mean: an error when they are read, or background.

    Raises:
        VolumeError: naming what is wrong with the image, and what to do.
        InputError: likewise, of the URL or the storage.
    """
    check_url(url)
    if level < 0:
        raise VolumeError(f"level is {level}; levels begin at 0, the finest.")
    module, _, attribute = FORMATS[_format_of(url)].partition(":")
    opened: Volume = getattr(import_module(module), attribute)(url, Selection(level, series, time, channels, missing))
    return opened


def _format_of(url: str) -> str:
    if is_remote(url):
        names = open_store(url).child_names()
        if names:
            return _folder_format(url, names)
        return _object_format(url)
    path = local_path(url)
    with storage_errors(url):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise VolumeError(f"input not found: {url}{near_path(path)}; check the path.") from None
        if path.is_dir():
            return _folder_format(url, open_store(url).child_names())
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            # Many slides are TIFF files of their maker's own kind; an MRXS is a JPEG beside a folder.
            may_be_slide = name == "tiff" or path.suffix.lower() == ".mrxs"
            return "slide" if may_be_slide and slide_vendor(path) else name
    if slide_vendor(path):
        return "slide"
    for magic, what, remedy in _FOREIGN:
        if head.lstrip().startswith(magic):
            raise VolumeError(f"unknown format: {url} (looks like {what}; {remedy}); {_READ} are read.")
    looks = "it is empty" if not head else f"begins with {head[:8]!r}"
    raise VolumeError(f"unknown format: {url} ({looks}); {_READ} are read.")


def _object_format(url: str) -> str:
    """Of an object of an object store, of which only a TIFF is read by parts."""
    file = open_object(url)
    if file is None:
        raise VolumeError(f"input not found: {url} (no such object, and none below it); check bucket and prefix.")
    head = file.read(_HEAD_BYTES)
    name = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if name != "tiff":
        what = "a picture" if name == "picture" else f"begins with {head[:8]!r}" if head else "it is empty"
        raise VolumeError(
            f"{url} is no TIFF ({what}); of single files only TIFF and SVS are read from object stores: copy it to this machine first."
        )
    return name


def _folder_format(url: str, names: tuple[str, ...]) -> str:
    if set(DOCUMENTS) & set(names):
        return "zarr"
    if OWN_FOLDER in names and open_store(url).exists(CONVERSION_KEY):
        raise VolumeError(f"{url} is an unfinished conversion; run 'unet convert' of the same source again to finish it.")
    if "attributes.json" in names or ("s0" in names and open_store(url).exists("s0/attributes.json")):
        return "n5"
    if "info" in names and isinstance((read_document(open_store(url), "info") or {}).get("scales"), list):
        return "precomputed"
    pictures = [name for name in names if name.lower().endswith(_PICTURES)]
    if pictures:
        raise VolumeError(
            f"{url} is a folder of {counted(len(pictures), 'image file')} ({', '.join(pictures[:3])}{' ..' if len(pictures) > 3 else ''}), not "
            "one image; name one of them, or give the folder to unet archive, which segments them all."
        )
    inside = [name for name in names if not name.startswith(".")][:3]
    holds = f"it holds {', '.join(inside)}" if inside else "it is empty"
    raise VolumeError(f"no zarr.json, .zarray or .zattrs under {url}, {holds}; point to a folder that holds one, or to a file.")
