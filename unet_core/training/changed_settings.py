"""Which setting, option, label or image makes two plans of a training differ, as it was typed. Knows the plan as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from unet_core.validation import shorten
from unet_core.wording import counted

Values = Mapping[str, Any]  # a plan as JSON

_OPTIONS = ("fold", "freeze", "ranks", "threads")
_SHOWN = 3


def changed_settings(old: Values, new: Values) -> list[str]:
    """A clause for each thing that differs, what explains the others first; none if the trainings are the same.

    Args:
        old: plan of the training that was begun.
        new: plan that is asked for now.

    Example:
        >>> old = {"options": {"steps": 20, "loss": {"dice": 0.5}}, "dataset": {}, "fingerprints": {}, "threads": 1}
        >>> changed_settings(old, old | {"options": {"steps": 30, "loss": {"dice": 0.5}}, "threads": 2})
        ['--set steps=20 then, --set steps=30 now', '--threads 1 then, --threads 2 now']
    """
    found = _parents(old, new)
    found += _data_sets(old["dataset"], new["dataset"])
    files = [url for url, content in new["fingerprints"].items() if old["fingerprints"].get(url, content) != content]
    found += [f"the image {url} or its labels have changed since" for url in files[:_SHOWN]]
    before, now = (_flat(plan["options"]) for plan in (old, new))
    for name in (key for key in [*before, *now] if before.get(key) != now.get(key)):
        clause = f"{_setting(name, before)} then, {_setting(name, now)} now"
        found += [clause] if clause not in found else []
    for name in _OPTIONS:
        if old.get(name) != new.get(name):
            found.append(f"{_option(name, old.get(name))} then, {_option(name, new.get(name))} now")
    return found


def _parents(old: Values, new: Values) -> list[str]:
    before, now = (plan.get("parent") or {} for plan in (old, new))
    if before.get("model") != now.get("model"):
        return [f"{_option('init', before.get('model'))} then, {_option('init', now.get('model'))} now"]
    if before.get("sha256") != now.get("sha256"):
        return [f"the model of --init {now['model']} has changed since"]
    return []


def _data_sets(old: Values, new: Values) -> list[str]:
    if old.get("root") != new.get("root"):
        return [f"data of {old.get('root')} then, of {new.get('root')} now"]
    found = []
    pairs = old.get("pairs") or (), new.get("pairs") or ()
    if len(pairs[0]) != len(pairs[1]):
        found.append(f"a data set of {counted(len(pairs[0]), 'pair')} then, of {len(pairs[1])} now")
    else:
        differing = next(((a, b) for a, b in zip(*pairs, strict=True) if a != b), None)
        if differing:
            first, second = differing
            key = next(key for key in [*first, *second] if first.get(key) != second.get(key))
            found.append(f"{key} of {second['image']} was {_inline(first.get(key))}, is {_inline(second.get(key))} now")
    others = [key for key in [*old, *new] if key != "pairs" and old.get(key) != new.get(key)]
    for key in dict.fromkeys(others):
        found.append(f"{key} of the data set was {_inline(old.get(key))}, is {_inline(new.get(key))} now")
    return found


def _setting(name: str, values: Values) -> str:
    """As it is typed, or that it is not set."""
    return f"--set {name}={_inline(values[name])}" if name in values else f"no --set {name}"


def _option(name: str, value: Any) -> str:
    return f"no --{name}" if value is None else f"--{name} {value}"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("\n").removesuffix("\n...")
    return shorten(text)


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        return {key: value for part in values for key, value in _flat(values[part], f"{name}.{part}" if name else part).items()}
    return {name: values}
