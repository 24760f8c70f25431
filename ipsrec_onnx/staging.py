"""Lets functions of this machine's disk take URIs: what they read is fetched first, what they make is sent last.

    @staged(inputs=["dataset"], outputs={"output": "run.json"})
    def train(dataset, output, ...): ...

The function sees paths of a scratch folder; errors and results name the URIs. Of a folder, the marker, without which it
is nothing, is emptied first and sent last, for a store renames nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ipsrec_onnx.errors import DataError, IpsrecError
from ipsrec_onnx.object_store import StorePath, scratch_of_this_user, store_path
from ipsrec_onnx.onnx_proto import external_data_files
from ipsrec_onnx.readable import why_unreadable
from ipsrec_onnx.uris import is_uri, local_path, names_folder

_MANIFEST = ".manifest.json"  # beside the candidates of a job
_ORIGINS: ContextVar[dict[str, str]] = ContextVar("origins", default={})  # noqa: B039 - it is never changed

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def staged(
    *, inputs: Sequence[str] = (), outputs: Mapping[str, str | None] | None = None
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Make a function take URIs for some of its arguments.

    Args:
        inputs: names of arguments that are read: files, model files with their external data, or folders.
        outputs: names of arguments that are made, each with the marker of a folder; None for a file. What is there
            already is fetched, so that the function refuses it, goes on with it or replaces it as on a disk.

    Raises:
        DataError: by the function that is made: nothing is there, or the store refuses.
    """
    made = dict(outputs or {})

    def stage(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def with_uris(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            bound = signature.bind(*args, **kwargs)
            given = {
                name: bound.arguments[name]
                for name in (*inputs, *made)
                if isinstance(bound.arguments.get(name), str | Path) and is_uri(bound.arguments[name])
            }
            if not given:
                return function(*args, **kwargs)
            with contextlib.ExitStack() as stack:
                names: dict[str, str] = {}
                for name, uri in given.items():
                    local = local_path(uri)
                    if is_uri(local):
                        scratch = stack.enter_context(scratch_of_this_user())
                        local = _fetched(uri, scratch, needed=name in inputs)
                        names[str(local)] = str(store_path(uri))
                    bound.arguments[name] = local
                token = _ORIGINS.set({**_ORIGINS.get(), **names})
                stack.callback(_ORIGINS.reset, token)
                with _named(names):
                    result = function(*bound.args, **bound.kwargs)
                    for name in made.keys() & given.keys():
                        if is_uri(local_path(given[name])):
                            _send(Path(bound.arguments[name]), store_path(given[name]), marker=made[name])
                return _renamed(result, names)

        return with_uris

    return stage


def origin(path: str | Path) -> str:
    """What the caller of a staged function called a path that it was given; other paths as they are."""
    return str(_renamed_value(path, _ORIGINS.get()))


@contextlib.contextmanager
def fetched_model(model: str | Path) -> Iterator[str | Path]:
    """Give a model file on this machine's disk while the block runs: the same, or a copy of one in a store.

    Raises:
        DataError: it is not there, or the store refuses.
    """
    model = local_path(model)
    if not is_uri(model):
        yield model
        return
    with scratch_of_this_user() as scratch:
        yield _fetched(model, scratch, needed=True)


def _fetched(uri: str | Path, scratch: Path, *, needed: bool) -> Path:
    """Copy what is there into a folder, under its own name; with a model file, its external data."""
    place = store_path(uri)
    if not place.name:
        raise DataError(f"{place} has no name of its own; name a file or folder in it")
    target = scratch / place.name
    if place.is_file():
        place.fetch(target)
        if target.suffix == ".onnx" and why_unreadable(target) is None:
            for name in external_data_files(target):
                place.with_name(name).fetch(scratch / name)
        _fetch_manifest(place, scratch)
    elif files := place.files():
        for name in files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).fetch(target / name)
        _fetch_manifest(place, scratch)
    elif needed:
        raise DataError(f"{place}: there is no such file or folder; check the URI")
    return Path(f"{target}/") if names_folder(uri) else target


def _fetch_manifest(place: StorePath, scratch: Path) -> None:
    """With candidates comes their manifest."""
    manifest = place.with_name(f"{place.name}{_MANIFEST}")
    if manifest.is_file():
        manifest.fetch(scratch / manifest.name)


def _send(local: Path, place: StorePath, *, marker: str | None) -> None:
    """Put a file, with what lies beside it, or a folder into the store; a folder's marker last."""
    if local.is_file():  # external data of a model lies beside it
        beside = sorted(path for path in local.parent.iterdir() if path != local and path.is_file())
        for path in (*beside, local):
            place.with_name(path.name).send(path)
        return
    made = sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
    there = place.files()
    if marker in there:  # an empty one is none: from here on there is no folder of its kind, until all is sent
        empty = local.with_name("empty")
        empty.touch()
        (place / marker).send(empty)
    if not there.keys() <= set(made):
        place.remove()
    for name in sorted(made, key=lambda name: name == marker):
        (place / name).send(local / name)


@contextlib.contextmanager
def _named(names: dict[str, str]) -> Iterator[None]:
    """Have errors speak of the URIs rather than of the scratch folder."""
    try:
        yield
    except IpsrecError as error:
        said = str(error)
        for local, uri in names.items():
            said = said.replace(local, uri)
        raise type(error)(said) from error


def _renamed(result: Result, names: dict[str, str]) -> Result:
    """Have a result speak of the URIs: in the fields of a dataclass, or the values of a dict."""
    found: Any = result
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        changed = {
            field.name: _renamed_value(getattr(found, field.name), names)
            for field in dataclasses.fields(found)
            if field.init and _renamed_value(getattr(found, field.name), names) is not getattr(found, field.name)
        }
        found = dataclasses.replace(found, **changed)
    if isinstance(found, dict):
        found = {key: _renamed_value(value, names) for key, value in found.items()}
    renamed: Result = found
    return renamed


def _renamed_value(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str | Path):
        for local, uri in names.items():
            if str(value).startswith(local):
                return uri + str(value).removeprefix(local)
    return value
