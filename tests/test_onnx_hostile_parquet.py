"""Arrow arrays and Parquet files that are not what they say: one DataError, before a kernel follows an offset."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file

from ipsrec_onnx import Scorer
from ipsrec_onnx.arrow_check import refuse_broken
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.filters import allowed_items
from ipsrec_onnx.id_lists import id_lists
from ipsrec_onnx.ids import find_ids, id_table, plain_ids
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.score_options import ScoreOptions
from ipsrec_onnx.score_rules import build_rules, open_ranker
from ipsrec_onnx.scored_chunk import score_chunk
from ipsrec_onnx.scoring import score
from ipsrec_onnx.user_chunks import read_chunks
from ipsrec_onnx.user_parts import plan_parts
from ipsrec_onnx.users import UserColumns, open_users

LARGEST = np.iinfo(np.int64).max


def buffer(numbers, dtype: type) -> pa.Buffer:
    return pa.py_buffer(np.array(numbers, dtype))


def through_ipc(array: pa.Array, old: bytes, new: bytes) -> pa.Array:
    """An array of other bytes: Arrow's buffers are checked when an array is made of them, but not when it is read."""
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, pa.schema([("c", array.type)])) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([array], names=["c"]))
        stream = sink.getvalue().to_pybytes()
    assert stream.count(old) >= 1
    with pa.ipc.open_stream(pa.py_buffer(stream.replace(old, new))) as reader:
        return reader.read_all()["c"].chunk(0)


def claiming(array: pa.Array) -> pa.Array:
    """An array of 1,009 entries that says that it has a million."""
    return through_ipc(array, struct.pack("<q", 1009), struct.pack("<q", 1_000_000))


def lists(offsets, values: pa.Array, *, large: bool = True) -> pa.Array:
    """A list array over any offsets."""
    kind, dtype = (pa.large_list if large else pa.list_)(values.type), np.int64 if large else np.int32
    sound = np.append(np.zeros(len(offsets) - 1), len(values)).astype(dtype)
    array = pa.Array.from_buffers(kind, len(offsets) - 1, [None, buffer(sound, dtype)], children=[values])
    return through_ipc(array, sound.tobytes(), np.array(offsets, dtype).tobytes())


def strings(
    offsets, *, large: bool = True, data: bytes = b"abcdef", around: Callable[[pa.Array], pa.Array] = lambda one: one
) -> pa.Array:
    """A string array over any offsets, or what lies around it."""
    kind, dtype = (pa.large_string(), np.int64) if large else (pa.string(), np.int32)
    sound = np.minimum(np.arange(len(offsets)), len(data)).astype(dtype)
    sound[-1] = len(data)
    array = pa.Array.from_buffers(kind, len(offsets) - 1, [None, buffer(sound, dtype), pa.py_buffer(data)])
    return through_ipc(around(array), sound.tobytes(), np.array(offsets, dtype).tobytes())


def in_lists(values: pa.Array) -> pa.Array:
    """Two lists of all values."""
    return pa.LargeListArray.from_arrays(pa.array([0, 1, len(values)], pa.int64()), values)


def as_words(values: pa.Array) -> pa.Array:
    """A dictionary of the values."""
    return dictionary(range(len(values)), values)


def dictionary(indices, words: pa.Array) -> pa.Array:
    kind = pa.dictionary(pa.int32(), words.type)
    return pa.DictionaryArray.from_buffers(kind, len(indices), [None, buffer(indices, np.int32)], words)


LISTS = pa.list_(pa.int64())
SIX = pa.array(range(1, 7))
SHORT = claiming(pa.array(range(1009)))  # says more than it has
BROKEN_INTS = {
    "offsets fall": lists([0, 4, 2, 6], SIX),
    "offsets fall, 32 bits": lists([0, 4, 2, 6], SIX, large=False),
    "a later offset leaves the values": lists([0, 100, 2], SIX),
    "the last offset leaves the values": lists([0, 2, 7], SIX),
    "far": lists([0, 2, 1 << 40], SIX),
    "largest": lists([0, LARGEST, LARGEST], SIX),
    "a negative first offset": lists([-3, 2, 6], SIX),
    "a negative later offset": lists([0, -1, 6], SIX),
    "smallest": lists([-LARGEST, 0, LARGEST], SIX),
    "too few offsets": claiming(pa.array([[1]] * 1009)),
    "too few values": claiming(pa.array([list(range(1009))])),
    "a slice of fallen offsets": lists([0, 4, 2, 6], SIX).slice(1, 1),
    "null list with a range that leaves": through_ipc(
        pa.array([[1, 2], None], pa.large_list(pa.int64())),
        struct.pack("<qqq", 0, 2, 2),
        struct.pack("<qqq", 0, 2, 99),
    ),
    "bits of null lists are missing": claiming(pa.array([None] * 1009, pa.list_(pa.int64()))),
    "bits of null ids are missing": claiming(pa.array([[*range(1008), None]])),
    "fixed lists of too few values": claiming(pa.array([[1, 2]] * 1009, pa.list_(pa.int64(), 2))),
    "list views that leave the values": through_ipc(
        pa.array([[1], [2], [3]], pa.list_view(pa.int64())), struct.pack("<iii", 0, 1, 2), struct.pack("<iii", 0, 9, 2)
    ),
    "indices beyond the dictionary": lists([0, 1, 3], dictionary([0, 9, 1], SIX)),
    "indices below the dictionary": lists([0, 1, 3], dictionary([0, -1, 1], SIX)),
    "indices of an empty dictionary": lists([0, 1, 3], dictionary([0, 0, 0], SIX[:0])),
}
BROKEN_STRINGS = {
    "strings whose offsets fall": strings([0, 4, 2, 6], around=in_lists),
    "strings of 32 bits whose offsets fall": strings([0, 4, 2, 6], large=False, around=in_lists),
    "strings that leave their bytes": strings([0, 2, 900, 3], around=in_lists),
    "the last string leaves its bytes": strings([0, 2, 3, 1 << 50], around=in_lists),
    "strings before their bytes": strings([-8, 2, 3, 4], around=in_lists),
    "too few offsets of strings": claiming(pa.array([[str(number) for number in range(1009)]])),
    "a dictionary of broken strings": strings([0, 4, 2, 6], around=lambda one: in_lists(as_words(one))),
    "indices beyond the dictionary of strings": lists([0, 1, 3], dictionary([0, 77, 1], pa.array(["a", "b"]))),
    "views that leave their bytes": through_ipc(
        pa.array([["a string of more than twelve bytes"]], pa.list_(pa.string_view())),
        struct.pack("<i4sii", 34, b"a st", 0, 0),
        struct.pack("<i4sii", 99, b"a st", 0, 0),
    ),
}


def case(broken: dict[str, pa.Array]):
    return pytest.mark.parametrize("column", broken.values(), ids=broken.keys())


@case(BROKEN_INTS | BROKEN_STRINGS)
def test_broken_lists_are_refused_with_their_place(column: pa.Array) -> None:
    words = column.type.value_type
    words = words.value_type if pa.types.is_dictionary(words) else words
    kind = pa.int64() if pa.types.is_integer(words) else pa.large_string()
    with pytest.raises(DataError, match=r"^users\.parquet, column h: the column is broken \(.*\); write the") as error:
        id_lists(column, kind=kind, where="users.parquet, column h")
    assert "\n" not in str(error.value)


@case(
    {
        "values": SHORT,
        "strings": strings([0, 4, 2, 6]),
        "strings of 32 bits": strings([0, 2, 900], large=False),
        "too few offsets": claiming(pa.array([str(number) for number in range(1009)])),
        "index": dictionary([0, 9], SIX),
        "negative index": dictionary([0, -5], SIX),
        "words": strings([0, 4, 2, 6], around=as_words),
    }
)
@pytest.mark.parametrize("chunked", [False, True])
def test_broken_ids_are_refused_with_their_place(column: pa.Array, chunked: bool) -> None:
    ids = pa.chunked_array([column.slice(0, 0), column]) if chunked else column
    with pytest.raises(DataError, match=r"^list, column i: the column is broken \("):
        plain_ids(ids, where="list, column i")


@pytest.mark.parametrize("string_ids", [False, True])
def test_sound_arrays_of_every_form_are_read(string_ids: bool) -> None:
    ids = pa.array(["a", "b", None, "déjà", "", "f"]) if string_ids else pa.array([1, 2, None, 4, 5, 6])
    kind = pa.large_string() if string_ids else pa.int64()
    offsets = np.array([1, 1, 3, 6])
    for values in (ids, ids.cast(kind), ids.dictionary_encode(), pa.concat_arrays([ids, ids]).slice(0, 6)):
        for large in (False, True):
            build = pa.LargeListArray if large else pa.ListArray
            column = build.from_arrays(pa.array(offsets, pa.int64() if large else pa.int32()), values)
            for part in (column, column.slice(1), column.slice(0, 0)):
                check_lists(part, part.to_pylist(), kind)


def check_lists(column: pa.Array, expected: list[list[object] | None], kind: pa.DataType) -> None:
    """A null list may stand for any values."""
    found = id_lists(column, kind=kind, where="here")
    plain = found.ids.dictionary_decode() if pa.types.is_dictionary(found.ids.type) else found.ids
    bounds = zip(found.offsets[:-1], found.lengths, found.null_lists, strict=True)
    given = [None if null else plain.slice(start, length).to_pylist() for start, length, null in bounds]
    assert given == expected
    assert found.offsets[0] == 0 and found.offsets[-1] == len(plain)


LIST_TYPES = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]


@pytest.mark.parametrize("make", LIST_TYPES, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "rows",
    [
        [[1], [2, 3]],
        [[], [2, None], [4, 5, 6]],
        [None, [1, 2]],
        [[1, 2], None, [], [3]],
        [[]],
        [None],
        [[1, 2]] * 50,
    ],
    ids=str,
)
def test_every_list_type_gives_the_same_lists(make, rows) -> None:
    """Arrow's own cast of list views lost the last list, or read behind its offsets."""
    column = pa.array(rows, make(pa.int64()))
    check_lists(column, rows, pa.int64())
    check_lists(pa.concat_arrays([column, column]).slice(1, len(rows)), [*rows[1:], rows[0]], pa.int64())


def test_views_in_any_order_are_read() -> None:
    values = pa.array([1, 2, 3, 4])
    column = pa.ListViewArray.from_arrays(pa.array([2, 0, 1], pa.int32()), pa.array([2, 2, 0], pa.int32()), values)
    check_lists(column, [[3, 4], [1, 2], []], pa.int64())


@pytest.mark.parametrize("string_ids", [False, True])
def test_a_null_list_may_have_a_range_of_its_own(string_ids: bool) -> None:
    ids = pa.array(["a", "b", "c", "d", "e"]) if string_ids else pa.array(range(5))
    kind = pa.large_string() if string_ids else pa.int64()
    holes = pa.Array.from_buffers(  # a null list may have a range of its own
        pa.large_list(ids.type), 2, [pa.py_buffer(b"\x01"), buffer([0, 2, 5], np.int64)], children=[ids]
    )
    assert id_lists(holes, kind=kind, where="here").null_lists.tolist() == [False, True]


def test_strings_that_are_no_utf8_are_no_broken_array() -> None:
    refuse_broken(strings([0, 2], data=b"\xff\xfe", around=in_lists), where="here")
    views = pa.array([b"\xff\xfe", b"more than twelve bytes \xff"], pa.binary_view()).view(pa.string_view())
    refuse_broken(in_lists(views), where="here")


def test_the_cost_of_a_slice_is_that_of_the_slice() -> None:
    """A large table is checked slice by slice: none may look at the others."""
    column = strings([0, 1, 2, 3, 4, 1, 6], around=in_lists).slice(0, 1)  # broken behind what is used
    refuse_broken(column, where="here")


# A job


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """4,321 users of a tiny model."""
    model = write_model_file(tmp_path / "model.onnx")
    item = model.catalog.item_ids[0].as_py()
    table = pa.table({"user_id": [f"u{n}" for n in range(4321)], "item_history": [[item, item]] * 4321})
    pq.write_table(table, tmp_path / "users.parquet")
    return tmp_path / "users.parquet"


@pytest.mark.parametrize(
    ("column", "broken", "message"),
    [
        ("item_history", lists([0, 4, 2, 6], SIX), "row group 0, column item_history: the column is broken"),
        ("item_history", lists([0, -2, 3, 6], SIX), "row group 0, column item_history: the column is broken"),
        ("user_id", strings([0, 4, 2, 6], large=False), "row group 0, column user_id: the column is broken"),
        ("user_id", strings([0, 1, 3000, 3], large=False), "row group 0, column user_id: the column is broken"),
    ],
)
def test_a_broken_chunk_is_refused_by_the_worker(users: Path, column: str, broken: pa.Array, message: str) -> None:
    model = open_model_file(users.with_name("model.onnx"))
    opened = open_users(users, UserColumns("user_id", "item_history", None, None))
    items = allowed_items(model.catalog, allow_items=None, deny_items=None)
    options = ScoreOptions(3, "list", False, "drop", "popular", "error", None, None, None, "onnxruntime", "cpu")
    ranker = open_ranker(model, options, items, index_cache=None)
    rules = build_rules(ranker, options, columns=opened.columns, schema=opened.schema, metadata=None)
    chunk = next(read_chunks(opened, plan_parts(opened), chunk_rows=3))
    assert score_chunk(chunk, rules).rows.num_rows == 3
    columns = {name: chunk.rows[name] for name in chunk.rows.schema.names} | {column: broken}
    with pytest.raises(DataError, match=message):
        score_chunk(replace(chunk, rows=pa.RecordBatch.from_pydict(columns)), rules)


VIEWS_THAT_LEAVE = BROKEN_STRINGS["views that leave their bytes"]
VIEWS_IN_VIEWS = pa.ListViewArray.from_arrays(
    pa.array([0], pa.int32()), pa.array([1], pa.int32()), VIEWS_THAT_LEAVE.values
)


@pytest.mark.parametrize(
    ("string_ids", "column", "broken"),
    [
        (False, "item_history", BROKEN_INTS["offsets fall"]),
        (False, "item_history", BROKEN_INTS["list views that leave the values"]),
        (True, "item_history", BROKEN_STRINGS["strings that leave their bytes"]),
        (True, "item_history", VIEWS_THAT_LEAVE),
        (True, "item_history", VIEWS_IN_VIEWS),
        (True, "user_id", VIEWS_THAT_LEAVE.values),
    ],
)
def test_a_broken_table_is_refused_before_it_is_cast(
    tmp_path: Path, string_ids: bool, column: str, broken: pa.Array
) -> None:
    scorer = Scorer(write_model_file(tmp_path / "model.onnx", string_ids=string_ids).path)
    sound = pa.array([[]] * len(broken), pa.list_(pa.string() if string_ids else pa.int64()))
    table = pa.table({"user_id": pa.array(range(len(broken))), "item_history": sound} | {column: broken})
    with pytest.raises(DataError, match=f"^table, column {column}: the column is broken"):
        scorer.score(table)


@pytest.mark.parametrize(
    "broken",
    [
        SHORT,
        claiming(pa.array([str(number) for number in range(1009)])),
        strings([0, 900, 3]),
        strings([0, 900, 3], large=False),
        dictionary([0, 9], pa.array(["a", "b"])),
        VIEWS_THAT_LEAVE.values,
    ],
    ids=["values", "many strings", "strings", "strings of 32 bits", "dictionary", "views"],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_broken_ids_of_one_user_are_refused(tmp_path: Path, broken: pa.Array, chunked: bool) -> None:
    string_ids = not pa.types.is_integer(broken.type)
    scorer = Scorer(write_model_file(tmp_path / "model.onnx", string_ids=string_ids).path)
    with pytest.raises(DataError, match=r"^user, item_history: the column is broken"):
        scorer.score_one(pa.chunked_array([broken]) if chunked else broken)


def test_the_table_of_string_ids_is_not_asked_with_broken_offsets() -> None:
    """The last line of defence, where somebody comes with Arrow arrays of their own."""
    table = pa.array(["a", "b"], pa.large_string())
    with pytest.raises(ValueError, match="offsets"):
        find_ids(id_table(table, what="item id"), strings([0, 4, 2, 6]))
    with pytest.raises(ValueError, match="offsets"):
        find_ids(id_table(table, what="item id"), strings([0, 4, 2, 1 << 40]))


# Footers


def varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def say(path: Path, wanted: Callable[[int], int | None], *, places: int = 3) -> None:
    """Let the footer say another number for some of the places where it says 4,321: all that count rows or values."""
    whole = path.read_bytes()
    (size,) = struct.unpack("<i", whole[-8:-4])
    pages, footer = whole[: -8 - size], whole[-8 - size : -8]
    parts = footer.split(b"\x16" + varint(2 * 4321))  # an i64 of Thrift's compact protocol, zigzag
    said = parts[0]
    for number, part in enumerate(parts[1:]):
        value = wanted(number)
        value = 4321 if value is None else value
        said += b"\x16" + varint(2 * value if value >= 0 else -2 * value - 1) + part
    assert len(parts) == 1 + places  # of the file, of column chunks (the lists may have more), of the row group
    path.write_bytes(pages + said + struct.pack("<i", len(said)) + b"PAR1")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (
            {0: 1 << 61, 1: 1 << 61, 2: 1 << 61},
            "row group 0: its footer says 2305843009213693952 rows, and 8642 values",
        ),
        ({0: 1 << 61}, "its footer says 2305843009213693952 rows, 4321 in all row groups, in [0-9]+ bytes; the file"),
        ({2: 1 << 61}, "row group 0: its footer says 2305843009213693952 rows, and 4321 values of user_id"),
        ({0: -1, 2: -1}, "its footer says -1 rows|cannot be read"),
        ({0: 0}, "its footer says 0 rows, 4321 in all row groups"),
        ({0: 5000, 1: 5000, 2: 5000}, "4321 rows, its footer says 5000; the file is broken|cannot be read"),
        ({0: 4000, 2: 4000}, "its footer says 4000 rows, and 4321 values of user_id"),
        ({1: 1 << 61}, "its footer says 4321 rows, and 2305843009213693952 values of user_id"),
        ({1: 5}, "its footer says 4321 rows, and 5 values of user_id"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_a_footer_that_says_other_numbers_is_refused(
    tmp_path: Path, users: Path, says: dict[int, int], message: str
) -> None:
    say(users, says.get)
    with pytest.raises(DataError, match=message) as error:
        score(tmp_path / "model.onnx", users, tmp_path / "out.parquet", top_k=3, threads=1)
    assert str(users) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out.parquet").exists()


def test_a_small_file_that_says_a_billion_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    pq.write_table(pa.table({"user_id": pa.nulls(4321, pa.int64()), "item_history": pa.nulls(4321, LISTS)}), path)
    say(path, lambda number: 1 << 60, places=4)
    with pytest.raises(DataError, match="its footer says 1152921504606846976 rows, 1152921504606846976 in all row gr"):
        open_users(path, UserColumns("user_id", "item_history", None, None))


def test_a_file_of_nothing_but_nulls_is_no_lie(tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    nulls = {"user_id": pa.nulls(3_000_000, pa.int64()), "item_history": pa.nulls(3_000_000, LISTS)}
    pq.write_table(pa.table(nulls), path, row_group_size=3_000_000, compression="zstd")
    assert open_users(path, UserColumns("user_id", "item_history", None, None)).num_rows == 3_000_000
