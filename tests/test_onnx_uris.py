"""Which paths are URIs, what opens them, and what is said of those that cannot be opened."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.uris import is_uri, local_path, names_folder, open_file_system, shown, store_errors


@pytest.mark.parametrize("path", ["s3://bucket/a", "file:///data/a", "memory://a", "abfs://c@account.host/a"])
def test_a_uri_has_a_scheme(path: str) -> None:
    assert is_uri(path)


@pytest.mark.parametrize("path", ["a.parquet", "/data/a//b", "C:/a", "data/a:b", "", "://a", Path("s3://bucket/a")])
def test_a_path_has_none(path: str | Path) -> None:
    assert not is_uri(path)


@pytest.mark.parametrize(
    ("uri", "kind", "path"),
    [
        ("s3://bucket/some/key?endpoint_override=127.0.0.1:9&scheme=http", pafs.S3FileSystem, "bucket/some/key"),
        ("s3://bucket/?region=eu-west-1", pafs.S3FileSystem, "bucket"),
        ("s3://bucket/dt=*/part-[0-9] of 10.parquet?region=eu-west-1", None, "bucket/dt=*/part-[0-9] of 10.parquet"),
        ("gs://anonymous@bucket/key/", pafs.GcsFileSystem, "bucket/key"),
        ("abfs://account@container/key", pafs.FileSystem, "container/key"),
        ("file:///data/a%20b/", pafs.LocalFileSystem, "/data/a b"),
        ("memory://folder/file", pafs.PyFileSystem, "/folder/file"),
    ],
)
def test_the_file_system_of_a_scheme_opens_it(uri: str, kind: type | None, path: str) -> None:
    file_system, found = open_file_system(uri)
    assert found == path
    assert isinstance(file_system, kind or pafs.S3FileSystem)


def test_a_file_of_fsspec_can_be_written_and_read() -> None:
    file_system, path = open_file_system("memory://test-uris/a file[1].txt")
    with file_system.open_output_stream(path) as stream:
        stream.write(b"bytes")
    again, path = open_file_system("memory://test-uris/a file[1].txt")
    assert again.open_input_stream(path).read() == b"bytes"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("foo://a/b", "neither pyarrow nor fsspec knows foo://"),
        ("hf://datasets/a", "a package for hf:// is not installed"),
        ("s3:///key", "Missing bucket name"),
        ("s3://bucket/key?region=eu-west-1&endpoint=x", "Unexpected query parameter"),
        ("file://other/data/a", "Unsupported hostname"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(uri: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        open_file_system(uri)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", "check the credentials"),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: none", "make it first"),
        ("AWS Error NETWORK_CONNECTION during HeadBucket operation: curlCode: 7", "check the endpoint"),
        ("Unable to load libjvm\ndlopen(/usr/lib/jvm) failed", "(Unable to load libjvm); check the URI"),
        ("", "(OSError); check the URI"),
    ],
)
def test_a_refusal_of_a_store_is_one_line_with_advice(said: str, advice: str) -> None:
    with pytest.raises(DataError) as caught, store_errors("s3://bucket/key"):
        raise OSError(said)
    assert str(caught.value).startswith("s3://bucket/key: ")
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_passwords_are_not_shown() -> None:
    assert shown("s3://key:secret@bucket/a") == "s3://key:***@bucket/a"
    assert shown("abfs://container@account.host/a") == "abfs://container@account.host/a"
    with pytest.raises(DataError) as caught:
        open_file_system("s3://key:secret@bucket/a?x=1")
    assert "secret" not in str(caught.value)


def test_a_file_uri_is_a_path_of_this_machine() -> None:
    assert local_path("file:///data/a%20b/c.parquet") == "/data/a b/c.parquet"
    assert local_path("file:///data/folder/") == "/data/folder/"
    assert local_path("s3://bucket/a") == "s3://bucket/a"
    assert local_path(Path("a/b")) == Path("a/b")


def test_a_slash_names_a_folder() -> None:
    assert names_folder("a/")
    assert names_folder("s3://bucket/a/?endpoint_override=127.0.0.1:9")
    assert not names_folder("s3://bucket/a?endpoint_override=http://127.0.0.1:9/")
    assert names_folder("a?b/")
    assert not names_folder("a")
