"""Lets functions of this machine's disk take URIs: what they read is fetched first, what they make is sent last.

    @staged(inputs=["source"], outputs={"output": "dataset.json"})
    def prepare(source, output, ...): ...

The function sees paths of a scratch folder; errors and results name the URIs. Of a folder, the marker, without which it
is nothing, is emptied first and sent last, for a store renames nothing. A folder that grows for hours is sent bit by
bit instead, in the order in which it was written: follow().
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ipsrec_onnx.errors import DataError, IpsrecError
from ipsrec_onnx.object_store import StorePath, refuse_stored, scratch_of_this_user, store_path
from ipsrec_onnx.onnx_proto import external_data_files
from ipsrec_onnx.readable import why_unreadable
from ipsrec_onnx.uris import is_uri, local_path, names_folder, shown

_MANIFEST = ".manifest.json"  # beside the candidates of a job
_LOCK = "lock"  # of a process of this machine, and nobody else's
_ORIGINS: ContextVar[dict[str, str]] = ContextVar("origins", default={})  # noqa: B039 - it is never changed
# The same with the passwords that a URI may carry; for other processes, never for people.
_GIVEN: ContextVar[dict[str, str]] = ContextVar("given", default={})  # noqa: B039 - it is never changed

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Followed:
    """A folder in a store that follows one of this machine.

    Attributes:
        place: in the store.
        stamps: when each file was last written and its size, as it was sent or fetched, by its path in the folder.
    """

    place: StorePath
    stamps: dict[str, tuple[int, int]]


_FOLLOWED: ContextVar[dict[str, _Followed]] = ContextVar("followed", default={})  # noqa: B039 - as above


def staged(
    *,
    inputs: Sequence[str] = (),
    outputs: Mapping[str, str | None] | None = None,
    runs: Sequence[str] = (),
    mapped: Sequence[str] = (),
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Make a function take URIs for some of its arguments.

    Args:
        inputs: names of arguments that are read: files, model files with their external data, or folders.
        outputs: names of arguments that are made, each with the marker of a folder; None for a file. What is there
            already is fetched, so that the function refuses it, goes on with it or replaces it as on a disk.
        runs: names of arguments that are folders to make or to go on with. What the function has written when it ends,
            however it ends, is sent, and what it has written before by follow().
        mapped: names of arguments that are folders whose files are mapped from a disk: a URI is refused.

    Raises:
        DataError: by the function that is made: nothing is there, or the store refuses.
    """
    made = {**(outputs or {}), **dict.fromkeys(runs)}

    def stage(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def with_uris(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            bound = signature.bind(*args, **kwargs)
            for name in mapped:
                _refuse_uri(name, bound.arguments)
            given = {
                name: bound.arguments[name]
                for name in (*inputs, *made)
                if isinstance(bound.arguments.get(name), str | Path) and is_uri(bound.arguments[name])
            }
            if not given:
                return function(*bound.args, **bound.kwargs)
            with contextlib.ExitStack() as stack:
                names: dict[str, str] = {}
                raw: dict[str, str] = {}
                followed: dict[str, _Followed] = {}
                for name, uri in given.items():
                    local = local_path(uri)
                    if is_uri(local):
                        if name in made:  # what could not be sent is better known before the work
                            refuse_stored(store_path(uri), overwrite=True)
                        scratch = stack.enter_context(scratch_of_this_user())
                        local = _fetched(uri, scratch, needed=name in inputs)
                        names[str(local)] = str(store_path(uri))
                        raw[str(local)] = str(uri)
                        if name in runs:
                            followed[str(local)] = _Followed(store_path(uri), _files(Path(local)))
                    bound.arguments[name] = local
                token = _ORIGINS.set({**_ORIGINS.get(), **names})
                stack.callback(_ORIGINS.reset, token)
                stack.callback(_GIVEN.reset, _GIVEN.set({**_GIVEN.get(), **raw}))
                following = _FOLLOWED.set({**_FOLLOWED.get(), **followed})
                stack.callback(_FOLLOWED.reset, following)
                with _named(names):
                    try:
                        result = function(*bound.args, **bound.kwargs)
                    except BaseException:
                        with contextlib.suppress(DataError):  # the error that brought us here matters more
                            for local in followed:
                                follow(local)
                        raise
                    for local in followed:
                        follow(local)
                    for name in (outputs or {}).keys() & given.keys():
                        if is_uri(local_path(given[name])):
                            _send(Path(bound.arguments[name]), store_path(given[name]), marker=made[name])
                return _renamed(result, names)

        return with_uris

    return stage


def origin(path: str | Path) -> str:
    """What the caller of a staged function called a path that it was given; other paths as they are."""
    return str(_renamed_value(path, _ORIGINS.get()))


def given(path: str | Path) -> str:
    """As origin, with the password that a URI may carry: for a process that has to open it, too."""
    return _GIVEN.get().get(str(path), str(path))


def follow(folder: str | Path) -> None:
    """Send what is new in a folder that is staged as a run, in the order in which it was written; nothing for others.

    Raises:
        DataError: the store refuses, or cannot be reached.
    """
    followed = _FOLLOWED.get().get(str(folder))
    if followed is None:
        return
    now = _files(Path(folder))
    for name in sorted(followed.stamps.keys() - now.keys()):
        (followed.place / name).remove()
        del followed.stamps[name]
    for name in sorted(now, key=lambda name: now[name]):
        if followed.stamps.get(name) != now[name]:
            (followed.place / name).send(Path(folder) / name)
            followed.stamps[name] = now[name]


@contextlib.contextmanager
def fetched(path: str | Path) -> Iterator[str | Path]:
    """Give a file or folder on this machine's disk while the block runs: the same, or a copy of one in a store.

    Raises:
        DataError: it is not there, or the store refuses.
    """
    path = local_path(path)
    if not is_uri(path):
        yield path
        return
    with scratch_of_this_user() as scratch:
        yield _fetched(path, scratch, needed=True)


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


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file of a folder was last written, and its size; without locks and hidden files, which are not done."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.name != _LOCK and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = (path.stat().st_mtime_ns, path.stat().st_size)
    return found


def _refuse_uri(name: str, arguments: dict[str, Any]) -> None:
    """Refuse a URI for a folder whose files are mapped; one that names this machine becomes a path."""
    if not isinstance(arguments.get(name), str | Path):
        return
    arguments[name] = path = local_path(arguments[name])
    if is_uri(path):
        raise DataError(
            f"{name.replace('_', ' ')} {shown(path)}: it is mapped from a disk, so it cannot lie in a store; name a "
            "folder of this machine"
        )


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
