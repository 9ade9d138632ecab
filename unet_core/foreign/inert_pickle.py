"""A pickle walked as data: what it describes, built of inert parts. Nothing is imported, called or looked up.

Nothing here knows files or networks; of torch only the names that it writes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unet_core.errors import ModelPackageError
from unet_core.validation import shorten

MAX_AXES = 8

_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_LISTS = tuple(f"torch.jit._pickle build_{kind}list" for kind in ("int", "double", "bool", "tensor"))


@dataclass
class Module:
    """Something with attributes; its class is a name only."""

    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class Storage:
    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class Record:
    """A tensor not yet read: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]


def walk(data: bytes, path: Path) -> Any:
    """What the pickle describes, built of inert parts.

    Raises:
        ModelPackageError: naming the first instruction or name that torch does not write for plain modules.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def since_mark() -> list[Any]:
        position = marks.pop()
        items = stack[position:]
        del stack[position:]
        return items

    try:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                stack.append(argument)
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "TUPLE":
                stack.append(tuple(since_mark()))
            elif name in _TUPLES:
                count = _TUPLES[name]
                stack[-count:] = [tuple(stack[-count:])]
            elif name in ("APPEND", "APPENDS"):
                items = since_mark() if name == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                for key in items[::2]:
                    _expect(key, (str, int))  # hashing a tuple of tuples of tuples might not end
                _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            elif name == "GLOBAL":
                stack.append(_Global(argument))
            elif name == "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_new_module(called, arguments))
            elif name == "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_call(called, arguments))
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name == "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            elif name == "STOP":
                return stack.pop()
            elif name != "PROTO":
                raise _Refused(f"the instruction {name}")
    except _Refused as refusal:
        raise ModelPackageError(
            f"{path} holds {refusal}, which is neither a module, a plain value nor a tensor; refused, since it could run code."
        ) from None
    except (ValueError, LookupError, TypeError) as error:
        raise ModelPackageError(f"{path}: data.pkl is damaged ({first_line(error)}); copy it again.") from None
    raise ModelPackageError(f"{path}: data.pkl ends too early; copy it again.")


class _Refused(Exception):
    """What is not read, in words."""


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "BINSTRING", "SHORT_BINSTRING")
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _expect(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} out of place")
    return value


def _new_module(called: Any, arguments: Any) -> Module:
    module = called.name.partition(" ")[0] if isinstance(called, _Global) else ""
    # A class of the script that saved it has no more of a module than this.
    if (module != "__torch__" and not module.startswith("__torch__.")) or arguments != ():
        raise _Refused(_what(called))
    return Module()


def _build(target: Any, state: Any) -> None:
    if not isinstance(target, Module):
        raise _Refused(f"a state for a {type(target).__name__}")
    # A class with a __getstate__ of its own keeps anything; only attributes can hold tensors with names.
    target.attributes = state if isinstance(state, dict) else {}


def _call(called: Any, arguments: Any) -> Any:
    name = called.name if isinstance(called, _Global) else ""
    if name == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, steps = arguments[:4]
        if not len(_expect(shape, tuple)) == len(_expect(steps, tuple)) <= MAX_AXES:
            raise TypeError(f"a tensor of {len(shape)} axes")
        if any(type(number) is not int or not 0 <= number < 1 << 63 for number in (offset, *shape, *steps)):
            raise TypeError("a tensor of a shape that is none")
        return Record(_expect(storage, Storage), offset, shape, steps)
    if name == "collections OrderedDict" and arguments == ():
        return {}
    if name in _LISTS:
        return _expect(arguments[0], list)
    raise _Refused(_what(called))


def _storage(identity: Any) -> Storage:
    kind, storage_type, key, _, count = identity
    if kind != "storage" or not isinstance(storage_type, _Global) or storage_type.name not in _STORAGES:
        raise _Refused(_what(storage_type))
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise TypeError("a storage without name or size")
    return Storage(_STORAGES[storage_type.name], key, count)


def _what(called: Any) -> str:
    return f"'{shorten(called.name.replace(' ', '.'))}'" if isinstance(called, _Global) else f"a call of {type(called).__name__}"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
