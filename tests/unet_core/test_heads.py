"""Models with several heads: saved, loaded, segmented by the head of the labels, the others kept beside probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaozarrs
import zarr

from tests.conftest import COLORS, describe, random_network, textured
from tests.unet_core.test_segment import expected_logits
from unet_core.errors import JobError, ModelPackageError
from unet_core.foreign.export_onnx import export_onnx
from unet_core.job import make_job
from unet_core.model_package import Head, LabelClass, load_model, save_model
from unet_core.planning import resolve
from unet_core.segment import run

Maker = Callable[..., Path]
OFFSETS = ((0, 1), (-3, 0))
HEADS = (
    Head(name="edges", kind="affinities", channels=(0, 4), offsets=OFFSETS),
    Head(kind="classes", channels=(2, 1)),
    Head(name="depth", kind="distance", channels=(3,), scale=5.0),
)
CLASSES = (LabelClass(value=0, name="nothing", color=COLORS[0]), LabelClass(value=7, name="cell", color=COLORS[1]))


def save(folder: Path, heads: tuple[Head, ...] = HEADS, classes: tuple[LabelClass, ...] = CLASSES, seed: int = 0) -> Path:
    arguments = {"in_channels": 1, "classes": 5, "base": 4, "levels": 3}
    stated = describe(**arguments).model_copy(update={"heads": heads, "classes": classes})
    save_model(folder, random_network(seed, **arguments), stated)
    return folder


def stored(output: Path, name: str) -> Any:
    return np.asarray(zarr.open_array(output / name, mode="r")[...])


def test_heads_are_loaded_as_they_were_saved_and_older_packages_have_no_new_fields(make_model: Maker, tmp_path: Path) -> None:
    description = load_model(save(tmp_path / "model")).description
    assert description.heads[0] == HEADS[0]
    assert description.heads[2] == HEADS[2]
    # Classes follow the channels: class 0 is channel 2, class 1 is channel 1.
    assert description.heads[1].channels == (1, 2)
    assert [entry.name for entry in description.classes] == ["cell", "nothing"]
    assert description.label_head is description.heads[1]
    assert [head.name for head in description.other_heads] == ["edges", "depth"]
    plain = json.loads((make_model() / "model.json").read_text())
    assert [sorted(head) for head in plain["heads"]] == [["channels", "kind", "name"]]


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_labels_come_from_their_head_and_the_others_are_kept(ngff: str, make_image: Maker, tmp_path: Path) -> None:
    model, image = save(tmp_path / "model"), make_image((37, 54))
    output = tmp_path / "out"
    run(make_job(image=str(image), output=str(output), model=str(model), block_shape=(16, 32), probabilities="uint8", ngff=ngff))
    logits = torch.from_numpy(np.ascontiguousarray(expected_logits(model, textured((37, 54)))))
    clear = (logits[1] - logits[2]).abs().numpy() > 1e-5
    np.testing.assert_array_equal(stored(output, "labels/classes/0")[clear], np.where(logits[1] > logits[2], 7, 0)[clear])
    half = 0.5 / 255 + 1e-5
    np.testing.assert_allclose(stored(output, "0") / 255, logits[[1, 2]].softmax(0).numpy(), atol=half)
    np.testing.assert_allclose(stored(output, "heads/edges/0") / 255, logits[[0, 4]].sigmoid().numpy(), atol=half)
    np.testing.assert_allclose(stored(output, "heads/depth/0"), logits[[3]].numpy(), atol=1e-5 * float(np.ptp(logits.numpy())))
    group = zarr.open_group(output / "heads/edges", mode="r").attrs.asdict()
    channels = (group["ome"] if ngff == "0.5" else group)["omero"]["channels"]
    assert [channel["label"] for channel in channels] == ["edges 0,1", "edges -3,0"]
    yaozarrs.validate_zarr_store(str(output / "heads/edges"))
    run(make_job(image=str(image), output=str(tmp_path / "labels"), model=str(model), block_shape=(16, 32), ngff=ngff))
    np.testing.assert_array_equal(stored(tmp_path / "labels", "labels/classes/0"), stored(output, "labels/classes/0"))
    assert not (tmp_path / "labels/heads").exists()


def test_averages_keep_other_heads_but_turned_affinities_are_refused(make_image: Maker, tmp_path: Path) -> None:
    image, models = make_image((20, 27)), [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    options = {"image": str(image), "output": str(tmp_path / "out"), "model": str(models[0])}
    run(make_job(**options, further_models=(str(models[1]),), probabilities="float32"))
    logits = [torch.from_numpy(np.ascontiguousarray(expected_logits(model, textured((20, 27))))) for model in models]
    for name, expected in (
        ("heads/edges/0", np.mean([each[[0, 4]].sigmoid().numpy() for each in logits], axis=0)),
        ("heads/depth/0", np.mean([each[[3]].numpy() for each in logits], axis=0)),
        ("0", np.mean([each[[1, 2]].softmax(0).numpy() for each in logits], axis=0)),
    ):
        np.testing.assert_allclose(stored(tmp_path / "out", name), expected, atol=1e-5)
    with pytest.raises(
        JobError, match="Head 'edges' .* has affinities, whose offsets turn with the image.*leave out --symmetries"
    ):
        resolve(make_job(**options, symmetries="flips", probabilities="uint8"))
    resolve(make_job(**options, symmetries="flips"))


def test_models_without_labels_load_but_do_not_segment(make_image: Maker, tmp_path: Path) -> None:
    heads = (Head(name="edges", kind="affinities", channels=(0, 1, 2, 4)), Head(name="depth", kind="distance", channels=(3,)))
    model = save(tmp_path / "model", heads, ())
    assert load_model(model).description.label_head is None
    with pytest.raises(ModelPackageError, match="only heads of kind affinities, distance, which give no labels; train it with"):
        resolve(make_job(image=str(make_image((20, 27))), output=str(tmp_path / "out"), model=str(model)))
    with pytest.raises(ModelPackageError, match="exports hold one head of kind classes or regions"):
        export_onnx(load_model(save(tmp_path / "several")), str(tmp_path / "model.onnx"))
