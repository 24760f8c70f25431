"""Paths that may be URIs: which are, what file system knows them, and what a store says when it refuses.

pyarrow's own file systems come first (s3://, gs://, hdfs://, abfs://, file://), then whatever fsspec knows. Credentials
and endpoints are the environment's (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...) or stand in the URI's query, as pyarrow
reads it: s3://bucket/key?endpoint_override=127.0.0.1:9000&scheme=http.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from ipsrec_onnx.errors import DataError, IpsrecError
from ipsrec_onnx.versions import how_to_install

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET: Final = re.compile(r"(://[^/@:?]*):[^@?]*@")  # a secret may have a slash
_ONE_REQUEST: Final = "allow_delayed_open=true"  # a file below 5 MB is sent in one request, and not in three
_LEGAL: Final = "/%:@!$&'()*+,;=~-._"  # in the path of a URI; globs may have brackets, and names blanks
# What stores say, and what to do about it; the first that fits.
_REASONS: Final = (
    (r"NO_SUCH_BUCKET|NoSuchBucket|specified bucket does not exist", "there is no such bucket; make it first"),
    (
        r"ACCESS_DENIED|AccessDenied|HTTP status 403|INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE_DOES_NOT_MATCH|"
        r"SignatureDoesNotMatch|Forbidden|Permission denied|UNAUTHENTICATED|PERMISSION_DENIED",
        "access is denied; check the credentials in the environment, and their rights",
    ),
    (
        r"NETWORK_CONNECTION|Could not connect|Couldn't connect|Could not resolve|Connection refused|timed? ?out",
        "the store cannot be reached; check the endpoint and the network, and run again",
    ),
)


def is_uri(path: str | Path) -> bool:
    """Is this a URI, or a path of this machine?"""
    return _SCHEME.match(os.fspath(path)) is not None


def names_folder(path: str | Path) -> bool:
    """Does a path or URI end in a slash, and so name a folder? A URI's query does not count."""
    text = os.fspath(path)
    return (text.partition("?")[0] if is_uri(text) else text).endswith("/")


def local_path(path: str | Path) -> str | Path:
    """Give file:// URIs as the paths of this machine that they name; all others as they are.

    Raises:
        DataError: the URI names another machine.
    """
    if not os.fspath(path).lower().startswith("file://"):
        return path
    _, local = open_file_system(path)
    return f"{local}/" if names_folder(path) else local  # the slash says that it is a folder


def shown(path: str | Path) -> str:
    """A path or URI for messages, logs and files: without the password that a URI may carry."""
    return _SECRET.sub(r"\1:***@", os.fspath(path))


def open_file_system(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """Find the file system of a URI; most stores are not asked anything yet.

    Args:
        uri: as is_uri says. The path in it may have characters that URIs would want quoted, such as those of globs.

    Returns:
        The file system, and the path there: for s3://bucket/key "bucket/key", without a slash at its end.

    Raises:
        DataError: nobody knows the scheme; a package, or what it needs, is not installed; or the store refuses.
    """
    scheme, _, rest = os.fspath(uri).partition("://")
    path, mark, query = rest.partition("?")
    if scheme.lower() == "s3" and _ONE_REQUEST.partition("=")[0] not in query:
        mark, query = "?", f"{query}&{_ONE_REQUEST}" if query else _ONE_REQUEST
    legal = f"{scheme}://{quote(path, safe=_LEGAL)}{mark}{query}"
    with store_errors(uri):
        try:
            file_system, found = pafs.FileSystem.from_uri(legal)
        except ImportError as error:  # pyarrow hands hf:// to fsspec
            raise _missing_package(uri, scheme, error) from error
        except pa.ArrowInvalid as error:
            if "Unrecognized filesystem" not in str(error):
                raise
            file_system, found = _open_by_fsspec(uri, scheme)
    return file_system, found.rstrip("/") or found


def _open_by_fsspec(uri: str | Path, scheme: str) -> tuple[pafs.FileSystem, str]:
    try:
        fsspec = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise DataError(
            f"{shown(uri)}: {scheme}:// is opened by fsspec, which is not installed; mend it with: "
            f"{how_to_install('object-stores')}"
        ) from error
    try:
        file_system, found = fsspec.url_to_fs(os.fspath(uri))
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        raise DataError(
            f"{shown(uri)}: neither pyarrow nor fsspec knows {scheme}://; expected a path, or a URI such as "
            "s3://bucket/folder/"
        ) from error
    except ImportError as error:
        raise _missing_package(uri, scheme, error) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(file_system)), found


def _missing_package(uri: str | Path, scheme: str, error: ImportError) -> DataError:
    return DataError(f"{shown(uri)}: a package for {scheme}:// is not installed ({first_line(error)})")


@contextlib.contextmanager
def store_errors(uri: str | Path) -> Iterator[None]:
    """Say in one line what a store refuses; for blocks that do nothing but ask it.

    Raises:
        DataError: any exception of the block that is not one of ours. fsspec's packages have exceptions of their own.
    """
    try:
        yield
    except IpsrecError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{shown(uri)}: there is no such file or folder; check the URI") from error
    except Exception as error:
        said = first_line(error)
        for pattern, reason in _REASONS:
            if re.search(pattern, said, re.IGNORECASE):
                raise DataError(f"{shown(uri)}: {reason} ({said})") from error
        raise DataError(f"{shown(uri)}: cannot be opened, read or written ({said}); check the URI") from error


def first_line(error: Exception) -> str:
    """The first line of what an exception says; some libraries list all that they tried."""
    lines = str(error).strip().splitlines()
    return shown(lines[0]) if lines else type(error).__name__
