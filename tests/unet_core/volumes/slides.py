"""Small slides in the formats of several makers, as their scanners lay them out: enough for OpenSlide to open them."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

from tests.conftest import textured

Pixels = np.ndarray[Any, Any]


def colours(shape: tuple[int, int]) -> Pixels:
    """(Y, X, 3)."""
    return np.stack([textured(shape, seed) for seed in range(3)], axis=-1)


def write_ndpi(path: Path, levels: list[Pixels]) -> Path:
    """Hamamatsu: pages of one JPEG each, told by private tags; 0.25 x 0.5 um."""
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(levels):
            tags = [(65420, "I", 1, 1, True), (65421, "f", 1, 20.0 / 2**number, True), (65424, "i", 1, 0, True)]
            writer.write(
                level,
                compression="jpeg",
                photometric="rgb",
                rowsperstrip=len(level),
                extratags=tags,
                metadata=None,
                resolution=(40000 / 2**number, 20000 / 2**number),
                resolutionunit="CENTIMETER",
            )
    return path


def write_scn(path: Path, pixels: Pixels, offset: tuple[int, int]) -> Path:
    """Leica: a BigTIFF whose XML places an image within a collection; voxels of 500 nm, ``offset`` in voxels (y, x)."""
    height, width = pixels.shape[:2]
    first_y, first_x = offset
    nm = 500
    dimension = f'<dimension ifd="0" sizeX="{width}" sizeY="{height}" r="0"/>'
    source = "<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings>"
    settings = f"<scanSettings>{source}<objectiveSettings><objective>20</objective></objectiveSettings></scanSettings>"
    view = f'<view sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{first_x * nm}" offsetY="{first_y * nm}"/>'
    pixel_xml = f'<pixels sizeX="{width}" sizeY="{height}">{dimension}</pixels>'
    size = f'sizeX="{(width + first_x) * nm}" sizeY="{(height + first_y) * nm}"'
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f"<collection {size}><image>{pixel_xml}{view}{settings}</image></collection></scn>"
    )
    tifffile.imwrite(
        path,
        pixels,
        bigtiff=True,
        tile=(64, 64),
        photometric="rgb",
        compression="zlib",
        description=xml,
        metadata=None,
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    return path


TILE = 32


def write_mrxs(path: Path, pixels: Pixels, absent: set[tuple[int, int]], fill: str = "C0FFEE") -> Path:
    """3DHISTECH: PNG tiles of 32 voxels in a data file, of which those at ``absent`` (row, column) were not scanned; two levels."""
    rows, columns = (size // TILE for size in pixels.shape[:2])
    folder, slide_id = path.with_suffix(""), "0123456789abcdef"
    folder.mkdir()
    path.write_bytes(_encoded(pixels[::4, ::4], "JPEG"))
    data, pages = bytearray(b"data"), []
    for step in (1, 2):
        page = []
        for row in range(0, rows, step):
            for column in range(0, columns, step):
                if {(row + y, column + x) for y in range(step) for x in range(step)} & absent:
                    continue
                part = pixels[row * TILE : (row + step) * TILE : step, column * TILE : (column + step) * TILE : step]
                tile = np.zeros((TILE, TILE, 3), np.uint8)
                tile[: len(part), : part.shape[1]] = part
                png = _encoded(tile, "PNG")
                page.append((row * columns + column, len(data), len(png), 0))
                data += png
        pages.append(page)
    (folder / "Data0000.dat").write_bytes(bytes(data))
    (folder / "Index.dat").write_bytes(_index(slide_id, pages))
    bgr = int(fill[4:] + fill[2:4] + fill[:2], 16)
    sections = {
        "GENERAL": {"SLIDE_ID": slide_id, "IMAGENUMBER_X": columns, "IMAGENUMBER_Y": rows, "OBJECTIVE_MAGNIFICATION": 20},
        "HIERARCHICAL": {
            "HIER_COUNT": 1,
            "NONHIER_COUNT": 0,
            "INDEXFILE": "Index.dat",
            "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": 2,
            "HIER_0_VAL_0_SECTION": "LEVEL_0",
            "HIER_0_VAL_1_SECTION": "LEVEL_1",
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
    }
    for level in range(2):
        sections[f"LEVEL_{level}"] = {
            "OVERLAP_X": 0,
            "OVERLAP_Y": 0,
            "MICROMETER_PER_PIXEL_X": 0.25 * 2**level,
            "MICROMETER_PER_PIXEL_Y": 0.25 * 2**level,
            "IMAGE_FORMAT": "PNG",
            "IMAGE_FILL_COLOR_BGR": bgr,
            "DIGITIZER_WIDTH": TILE,
            "DIGITIZER_HEIGHT": TILE,
            "IMAGE_CONCAT_FACTOR": level,
        }
    lines = [line for name, entries in sections.items() for line in (f"[{name}]", *(f"{k} = {v}" for k, v in entries.items()))]
    (folder / "Slidedat.ini").write_text("\n".join(lines))
    return path


def _index(slide_id: str, pages: list[list[tuple[int, int, int, int]]]) -> bytes:
    """Version, id, root pointer; a pointer a level; for each a list: 0, pointer to a page; the page: count, next, records."""
    head = b"01.02" + slide_id.encode()
    root = len(head) + 8  # after the two roots
    lists = root + 4 * len(pages)
    bodies, starts, at = b"", [], lists
    for page in pages:
        starts.append(at)
        body = (
            struct.pack("<ii", 0, at + 8)
            + struct.pack("<ii", len(page), 0)
            + b"".join(struct.pack("<iiii", *row) for row in page)
        )
        bodies += body
        at += len(body)
    return head + struct.pack("<ii", root, 0) + struct.pack(f"<{len(pages)}i", *starts) + bodies


def _encoded(pixels: Pixels, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind)
    return buffer.getvalue()


def write_dicom(path: Path, pixels: Pixels, level: int = 0, series: str | None = None, tile: int = 64) -> str:
    """A whole-slide instance with uncompressed tiles, voxels of 0.5 um at level 0; the UID of its series."""
    height, width = pixels.shape[:2]
    series = series or generate_uid()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.Modality, image.SeriesInstanceUID = "SM", series
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if level == 0 else "RESAMPLED"]
    image.DimensionOrganizationType = "TILED_FULL"
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows, image.TotalPixelMatrixFocalPlanes = width, height, 1
    image.Rows = image.Columns = tile
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.0005 * 2**level] * 2, 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    optical = Dataset()
    optical.OpticalPathIdentifier = "0"
    image.OpticalPathSequence = Sequence([optical])
    down, across = -(-height // tile), -(-width // tile)
    whole = np.zeros((down * tile, across * tile, 3), np.uint8)
    whole[:height, :width] = pixels
    image.NumberOfFrames = down * across
    frames = whole.reshape(down, tile, across, tile, 3).swapaxes(1, 2)
    image.PixelData = frames.tobytes()
    pydicom.dcmwrite(path, image, enforce_file_format=True)
    return series
