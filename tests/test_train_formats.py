from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import get_args

import naive_formats as naive
import numpy as np
import polars as pl
import pytest

from ipsrec_cli.prepare import FORMATS
from ipsrec_onnx.dataset import open_dataset, read_histories
from ipsrec_onnx.errors import DataError
from ipsrec_train.formats import InputFormat, read_interactions
from ipsrec_train.interactions import Interactions
from ipsrec_train.prepare import prepare

EVERYTHING = {"min_user_interactions": 1, "min_item_interactions": 1}


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write the files of an input, gzip where the name says so; the folder."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def read(
    tmp_path: Path, input_format: str, files: dict[str, str | bytes], source: str = ".", **options
) -> Interactions:
    """Read an input of these files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    chosen = {"columns": {}, "action": None, "on_conflict": "error", **options}
    return read_interactions(write(tmp_path / "input", files) / source, scratch, input_format=input_format, **chosen)


def rows(found: Interactions) -> list[tuple]:
    """user, item, provider, time of each interaction, in the order of the input."""
    table = found.table.sort("row", "timestamp").collect()
    return table.select("user_id", "item_id", "provider_id", "timestamp").rows()


def left_out(found: Interactions) -> dict[str, int]:
    return {what.reason: what.rows for what in found.left_out}


def first(found: Interactions) -> dict[str, str | None]:
    return {what.reason: what.first for what in found.left_out}


def refused(tmp_path: Path, input_format: str, files: dict[str, str | bytes], **options) -> str:
    """Read an input that must be refused; the message, one line."""
    with pytest.raises(DataError) as error:
        read(tmp_path, input_format, files, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def damaged(text: str, rng: np.random.Generator, *, keep: int) -> str:
    """Change one character in every third line: put one in, take one out, or replace one."""
    lines = text.split("\n")[:-1]
    for number in range(keep, len(lines), 3):
        line = lines[number]
        place = int(rng.integers(0, len(line)))
        inserted = rng.choice(list(',,,x-"0 9')) if rng.random() < 0.7 else ""
        lines[number] = line[:place] + inserted + line[place + int(rng.integers(0, 2)) :]
    return "\n".join(lines) + "\n"


# Tmall, IJCAI-16

TAOBAO_HEADER = "use_ID,sel_ID,ite_ID,cat_ID,act_ID,time\n"
TAOBAO = "1980536,9666,1266369,1271,1,20151030\n1980536,9666,2277,1271,0,20150701\n93,7,2277,4,1,20151130\n"


@pytest.mark.parametrize(("action", "lines"), [(None, (0, 2)), ("buy", (0, 2)), ("click", (1,)), ("all", (0, 1, 2))])
def test_tmall_action_chooses_the_rows(tmp_path, action, lines):
    found = read(tmp_path, "tmall", {"ijcai2016_taobao.csv": TAOBAO_HEADER + TAOBAO}, action=action)
    whole = [(1980536, 1266369, 9666, 20151030), (1980536, 2277, 9666, 20150701), (93, 2277, 7, 20151130)]
    assert rows(found) == [whole[line] for line in lines]
    assert left_out(found) == ({"other action": 3 - len(lines)} if len(lines) < 3 else {})


@pytest.mark.parametrize("name", ["ijcai2016_taobao.csv", "ijcai2016_taobao", "ijcai2016_taobao.csv.gz", "mine.txt"])
@pytest.mark.parametrize("header", [TAOBAO_HEADER, "", "\ufeff" + TAOBAO_HEADER, TAOBAO_HEADER.replace("\n", "\r\n")])
def test_tmall_is_the_same_under_other_names_packed_and_without_its_header(tmp_path, name, header):
    body = TAOBAO.replace("\n", "\r\n") if "\r" in header else TAOBAO
    source = name if name == "mine.txt" else "."
    found = read(tmp_path, "tmall", {name: header + body}, source)
    assert rows(found) == [(1980536, 1266369, 9666, 20151030), (93, 2277, 7, 20151130)]


@pytest.mark.parametrize(
    "text",
    [
        "time,act_ID,use_ID,cat_ID,ite_ID,sel_ID\n20151030,1,5,0,6,7\n",
        ",use_ID,sel_ID,ite_ID,cat_ID,act_ID,time\n0,5,7,6,0,1,20151030\n",
        "act_ID,sel_ID,ite_ID,use_ID,time\n1,7,6,5,20151030\n",
    ],
    ids=["another order", "one more", "one less that is not needed"],
)
def test_tmall_columns_are_read_by_name(tmp_path, text):
    assert rows(read(tmp_path, "tmall", {"ijcai2016_taobao.csv": text})) == [(5, 6, 7, 20151030)]


MALFORMED_TAOBAO = [
    ("1,2,3,4,1", "wrong number of fields"),
    ("1,2,3,4,1,20151030,", "wrong number of fields"),
    ("", "wrong number of fields"),
    (",2,3,4,1,20151030", "empty id"),
    ("1,2,,4,1,20151030", "empty id"),
    ("1,,3,4,1,20151030", "empty id"),
    ("one,2,3,4,1,20151030", "id is not an integer"),
    ("1,2.0,3,4,1,20151030", "id is not an integer"),
    ("1,2,9223372036854775808,4,1,20151030", "id is not an integer"),
    ('"1",2,3,4,1,20151030', "id is not an integer"),
    (b"1,2,\xff3,4,1,20151030", "id is not an integer"),
    ("1,2,3,4,1,20151131", "bad date"),
    ("1,2,3,4,1,1446163200", "bad date"),
    ("1,2,3,4,1,", "bad date"),
    ("1,2,3,4,1,-2015103", "bad date"),
    ("1,2,3,4,1, 2015101", "bad date"),
    ("1,2,3,4,1,2015 1 1", "bad date"),
    ("1,2,3,4,1,+2015101", "bad date"),
    ("1,2,3,4,2,20151030", "unknown action"),
    ("1,2,3,4,,20151030", "unknown action"),
    ("1,2,3,4,0,20151030", "other action"),
]


@pytest.mark.parametrize(("line", "reason"), MALFORMED_TAOBAO)
@pytest.mark.parametrize("header", [TAOBAO_HEADER, ""])
def test_tmall_row_that_is_none_is_left_out_and_counted_with_its_line(tmp_path, line, reason, header):
    bad = line if isinstance(line, bytes) else line.encode()
    text = (header + TAOBAO).encode() + bad + b"\n" + TAOBAO.encode() + bad + b"\n"
    found = read(tmp_path, "tmall", {"ijcai2016_taobao.csv": text})
    assert len(rows(found)) == 4
    expected = Counter({"other action": 2}) + Counter({reason: 2})
    assert left_out(found) == expected
    if reason != "other action":
        assert first(found)[reason] == f"ijcai2016_taobao.csv, line {4 + bool(header)}"


@pytest.mark.parametrize("action", ["buy", "click", "all"])
def test_tmall_with_many_damaged_rows_is_that_of_the_naive_twin(tmp_path, rng, action):
    lines = "".join(
        f"{user},{seller},{item},{item % 9},{act},201510{day:02}\n"
        for user, seller, item, act, day in zip(
            rng.integers(1, 99, 600),
            rng.integers(1, 9, 600),
            rng.integers(1, 999, 600),
            rng.integers(0, 2, 600),
            rng.integers(1, 32, 600),
            strict=True,
        )
    )
    text = damaged(TAOBAO_HEADER + lines, rng, keep=1)
    found = read(tmp_path, "tmall", {"ijcai2016_taobao.csv": text}, action=action)
    expected, counts = naive.tmall(text, {"buy": {1}, "click": {0}, "all": {0, 1}}[action])
    assert rows(found) == expected
    assert left_out(found) == dict(counts)
    assert len(expected) + sum(left_out(found).values()) == 600


# Tmall, IJCAI-15

USER_LOG_HEADER = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n"
USER_LOG = (
    "328862,323294,833,2882,2661,0829,0\n"
    "328862,844400,1271,2882,,829,2\n"
    "328862,575153,1271,2882,2661,1111,3\n"
    "7,1086186,1271,1253,1049,0511,1\n"
)
USER_LOG_ROWS = [
    (328862, 323294, 2882, 20140829),
    (328862, 844400, 2882, 20140829),
    (328862, 575153, 2882, 20141111),
    (7, 1086186, 1253, 20140511),
]


@pytest.mark.parametrize("name", ["user_log_format1.csv", "data_format1/user_log_format1.csv"])
@pytest.mark.parametrize(("action", "lines"), [("buy", (1,)), ("click", (0,)), ("all", (0, 1, 2, 3))])
def test_tmall_of_2015_is_known_by_its_header(tmp_path, name, action, lines):
    found = read(tmp_path, "tmall", {name: USER_LOG_HEADER + USER_LOG}, action=action)
    assert rows(found) == [USER_LOG_ROWS[line] for line in lines]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,2,3,4,5,0931,2", "bad date"),
        ("1,2,3,4,5,31,2", "bad date"),
        ("1,2,3,4,5,11111,2", "bad date"),
        ("1,2,3,4,5,1111,4", "unknown action"),
        ("1,2,3,4,5,1111", "wrong number of fields"),
        ("1,2,3,,5,1111,2", "empty id"),
    ],
)
def test_tmall_of_2015_row_that_is_none_is_counted(tmp_path, line, reason):
    text = f"{USER_LOG_HEADER}{line}\n{USER_LOG}"
    found = read(tmp_path, "tmall", {"user_log_format1.csv": text}, action="all")
    assert rows(found) == USER_LOG_ROWS
    assert left_out(found) == {reason: 1}
    assert first(found) == {reason: "user_log_format1.csv, line 2"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ijcai2016_taobao.csv": "user,item\n1,2\n"}, "first line is 'user,item', expected use_ID"),
        ({"ijcai2016_taobao.csv": "1,2,3,4,1\n"}, "first line is '1,2,3,4,1'"),
        ({"ijcai2016_taobao.csv": TAOBAO_HEADER.replace("cat_ID", "time")}, "first line is 'use_ID,sel_ID,ite_ID,time"),
        ({"ijcai2016_taobao.csv": TAOBAO_HEADER}, r"no line is an interaction \(no lines\)"),
        ({"ijcai2016_taobao.csv": TAOBAO_HEADER + "1,2,3,4,0,20150701\n"}, "no line is an .*other action: 1 .*line 2"),
        ({"ijcai2016_taobao.csv": ""}, "is empty"),
        ({"ijcai2016_taobao.csv.gz": ""}, "has no line"),
        ({"other.csv": TAOBAO}, "looked for .*found none; name the folder"),
        ({"ijcai2016_taobao.csv": TAOBAO, "user_log_format1.csv": USER_LOG}, "found 2 such files"),
    ],
)
def test_tmall_that_is_none_is_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, "tmall", files)


def test_control_character_that_would_cut_a_line_is_refused(tmp_path):
    text = TAOBAO_HEADER + TAOBAO + "1,2,3,4,1,2015\x0110,30\n"
    assert "ijcai2016_taobao.csv cannot be read" in refused(tmp_path, "tmall", {"ijcai2016_taobao.csv": text})


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
def test_last_line_counts_however_it_ends(tmp_path, end):
    found = read(tmp_path, "tmall", {"ijcai2016_taobao.csv": "\ufeff" + TAOBAO.rstrip() + end})
    assert [row[0] for row in rows(found)] == [1980536, 93]
    assert left_out(found).get("wrong number of fields", 0) == (end == "\n\n")


# Twitch

TWITCH = (
    "1,34347669376,grimnax,5415,5419\n"
    "1,34391109664,jtgtv,5869,5870\n"
    "2,33848559952,123,206,207\n"
    "2,33881429664,0042,519,524\n"
)
TWITCH_ROWS = [
    (1, 34347669376, "grimnax", 5415),
    (1, 34391109664, "jtgtv", 5869),
    (2, 33848559952, "123", 206),
    (2, 33881429664, "0042", 519),
]


@pytest.mark.parametrize("name", ["100k.csv", "100k_a.csv", "full_a.csv.gz"])
def test_twitch_item_is_the_stream_and_provider_the_streamer(tmp_path, name):
    found = read(tmp_path, "twitch", {name: TWITCH})
    assert rows(found) == TWITCH_ROWS
    assert left_out(found) == {}


def test_twitch_streamers_stay_names_where_all_look_like_numbers(tmp_path):
    found = read(tmp_path, "twitch", {"100k.csv": "1,2,3,4,5\n1,3,007,5,6\n"})
    assert [row[2] for row in rows(found)] == ["3", "007"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,34347669376,grimnax,5415", "wrong number of fields"),
        (b"1,34347669376,grim,nax,5415,5419", "wrong number of fields"),
        (b"user,stream,streamer,start,stop", "id is not an integer"),
        (b"1,3e10,grimnax,5415,5419", "id is not an integer"),
        (b",34347669376,grimnax,5415,5419", "empty id"),
        (b"1,34347669376,,5415,5419", "empty id"),
        (b"1,34347669376,gr\xe9mnax,5415,5419", "not UTF-8"),
        (b"1,34347669376,grimnax,,5419", "bad time"),
        (b"1,34347669376,grimnax,5415.5,5419", "bad time"),
    ],
)
def test_twitch_row_that_is_none_is_counted(tmp_path, line, reason):
    found = read(tmp_path, "twitch", {"100k.csv": line + b"\n" + TWITCH.encode()})
    assert rows(found) == TWITCH_ROWS
    assert left_out(found) == {reason: 1}
    assert first(found) == {reason: "100k.csv, line 1"}


def test_twitch_with_many_damaged_rows_is_that_of_the_naive_twin(tmp_path, rng):
    text = damaged(TWITCH * 150, rng, keep=0)
    found = read(tmp_path, "twitch", {"100k.csv": text})
    expected, counts = naive.twitch(text)
    assert rows(found) == expected
    assert left_out(found) == dict(counts)


def test_damaged_gzip_file_is_refused(tmp_path):
    packed = gzip.compress(TWITCH.encode() * 9_000)
    folder = write(tmp_path / "cut", {"100k.csv": packed[: len(packed) // 2]})
    with pytest.raises(DataError, match="cannot be read"):
        prepare(folder, tmp_path / "dataset", input_format="twitch")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


# WeChat

ACTIONS_HEADER = "userid,feedid,date_,device,read_comment,comment,like,play,stay,click_avatar,forward,follow,favorite\n"
FEEDS_HEADER = "feedid,authorid,videoplayseconds,description,ocr,asr,machine_tag_list\n"
FEEDS = '100,7,12,1 2 3,,4 5,11 0.5;12 0.1\n101,8,30,"6, 7","a ""word""",,\n102,,5,,,,\n103,7,5,,,,\n'


def action(user: object, feed: object, date: object) -> str:
    return f"{user},{feed},{date},1,0,0,0,900,1200,0,0,0,0\n"


ACTIONS = action(1, 101, 2) + action(1, 100, 2) + action(2, 103, 1)
ACTIONS_ROWS = [(1, 101, 8, 2), (1, 100, 7, 2), (2, 103, 7, 1)]


def wechat(actions: str, feeds: str = FEEDS_HEADER + FEEDS) -> dict[str, str | bytes]:
    return {"user_action.csv": actions, "feed_info.csv": feeds}


def test_wechat_provider_is_the_author(tmp_path):
    found = read(tmp_path, "wechat", wechat(ACTIONS_HEADER + ACTIONS))
    assert rows(found) == ACTIONS_ROWS
    assert left_out(found) == {}


def test_wechat_columns_are_read_by_name(tmp_path):
    found = read(tmp_path, "wechat", wechat("date_,play,feedid,userid\n3,0,100,9\n", "ocr,authorid,feedid\n,7,100\n"))
    assert rows(found) == [(9, 100, 7, 3)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (action(1, 102, 1), "no author"),
        (action(1, 999, 1), "no author"),
        ("1,100,1\n", "wrong number of fields"),
        (action(1, 100, "1,1"), "wrong number of fields"),
        (action("", 100, 1), "empty id"),
        (action(1, "x", 1), "id is not an integer"),
        (action(1, 100, "today"), "bad date"),
    ],
)
def test_wechat_row_that_is_none_is_counted(tmp_path, line, reason):
    found = read(tmp_path, "wechat", wechat(ACTIONS_HEADER + ACTIONS + line))
    assert rows(found) == ACTIONS_ROWS
    assert left_out(found) == {reason: 1}
    assert first(found) == {reason: "user_action.csv, line 5"}


def test_wechat_lines_of_the_second_file_that_are_no_use_are_counted_as_such(tmp_path):
    feeds = FEEDS_HEADER + FEEDS + "x,1,,,,,\n104,someone,,,,,\n"
    found = read(tmp_path, "wechat", wechat(ACTIONS_HEADER + ACTIONS + action(1, 104, 1), feeds))
    assert left_out(found) == {"no author": 1, "unusable line of feed_info.csv": 2}
    assert first(found)["unusable line of feed_info.csv"] == "feed_info.csv, line 6"


def test_wechat_texts_of_feeds_may_hold_commas_quotes_and_line_breaks(tmp_path):
    feeds = '100,7,12,"1\n\n2, 3",,,\n101,8,30,a "b,c,"d" e,\n103,7,5,,,,\nx,9,5,,,,\n'
    files = wechat(ACTIONS_HEADER + ACTIONS, "\ufeff" + (FEEDS_HEADER + feeds).replace("\n", "\r\n"))
    found = read(tmp_path, "wechat", files)
    assert rows(found) == ACTIONS_ROWS
    assert left_out(found) == {"unusable line of feed_info.csv": 1}
    assert first(found) == {"unusable line of feed_info.csv": "feed_info.csv, line 7"}


@pytest.mark.parametrize("line", ["101,1,2,8", "101,1,2,8,", "101,1", ""])
def test_wechat_feed_with_a_field_too_many_or_too_few_has_no_author(tmp_path, line):
    feeds = f"feedid,description,authorid\n100,1 2,7\n{line}\n103,,7\n"
    found = read(tmp_path, "wechat", wechat(ACTIONS_HEADER + ACTIONS, feeds))
    assert rows(found) == ACTIONS_ROWS[1:]
    assert left_out(found) == {"no author": 1, "unusable line of feed_info.csv": 1}
    assert first(found)["unusable line of feed_info.csv"] == "feed_info.csv, line 3"


def test_wechat_packed_is_the_same(tmp_path):
    files = {f"{name}.gz": text for name, text in wechat(ACTIONS_HEADER + ACTIONS).items()}
    assert rows(read(tmp_path, "wechat", files)) == ACTIONS_ROWS


def test_wechat_quote_without_end_is_refused(tmp_path):
    files = wechat(ACTIONS_HEADER + ACTIONS, FEEDS_HEADER + FEEDS + '104,1,5,"' + "1 2\n" * 40_000)
    assert "feed_info.csv, near line" in refused(tmp_path, "wechat", files)


def test_wechat_feed_with_two_authors_is_refused_or_gets_the_last(tmp_path):
    files = wechat(ACTIONS_HEADER + ACTIONS, FEEDS_HEADER + FEEDS + "100,5,,,,,\n103,7,,,,,\n")
    assert "item 100 has two providers, 5 and 7 (1 such items in all)" in refused(tmp_path, "wechat", files)
    found = read(tmp_path, "wechat", files, on_conflict="last")
    assert rows(found) == [(1, 101, 8, 2), (1, 100, 5, 2), (2, 103, 7, 1)]
    assert found.provider_conflicts == 1


def test_wechat_rows_of_one_day_keep_the_order_of_the_file(tmp_path, rng):
    feeds = rng.permutation(np.arange(1, 301))
    text = "".join(action(1, feed, 5) for feed in feeds)
    info = "feedid,authorid\n" + "".join(f"{feed},{feed % 7}\n" for feed in range(1, 301))
    write(tmp_path / "input", wechat(ACTIONS_HEADER + text, info))
    prepare(tmp_path / "input", tmp_path / "dataset", input_format="wechat", **EVERYTHING)
    histories = read_histories(open_dataset(tmp_path / "dataset"))
    assert histories["item_history"].to_pylist() == [feeds.tolist()]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"user_action.csv": ACTIONS_HEADER + ACTIONS}, "looked for feed_info.csv .* found none"),
        ({"feed_info.csv": FEEDS_HEADER + FEEDS}, "looked for user_action.csv .* found none"),
        (wechat("userid,feedid,date\n1,2,3\n"), "column date_ expected once"),
        (wechat(ACTIONS_HEADER + ACTIONS, "feedid,author\n1,2\n"), "column authorid expected once"),
        (
            wechat(ACTIONS_HEADER + ACTIONS, "feedid,authorid\n1,\r2\n"),
            "feed_info.csv, near line 2: new-line character",
        ),
        (wechat(ACTIONS_HEADER + ACTIONS, FEEDS_HEADER), "no line is an interaction .*no author: 3"),
    ],
)
def test_wechat_that_is_none_is_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, "wechat", files)


def test_wechat_file_instead_of_its_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no folder; name the folder that holds user_action\.csv and feed_info"):
        read(tmp_path, "wechat", wechat(ACTIONS_HEADER + ACTIONS), "user_action.csv")


# RecBole

INTER_HEADER = "user_id:token\tseller_id:token\titem_id:token\trating:float\ttimestamp:float\n"
INTER = "1\t9\t10\t1.0\t30.5\n2\t8\t11\t1.0\t20\n1\t8\t11\t\t1e1\n"


@pytest.mark.parametrize("source", [".", "shop.inter"])
def test_recbole_with_the_provider_in_inter(tmp_path, source):
    found = read(tmp_path, "recbole", {"shop.inter": INTER_HEADER + INTER, "shop.user": "user_id:token\n"}, source)
    assert rows(found) == [(1, 10, 9, 30.5), (2, 11, 8, 20.0), (1, 11, 8, 10.0)]
    assert left_out(found) == {}


def test_recbole_tokens_are_strings_unless_all_are_numbers(tmp_path):
    text = INTER_HEADER + "1\tA\t010\t1\t1\n2\tB\t11\t1\t2\n"
    assert rows(read(tmp_path, "recbole", {"shop.inter": text})) == [(1, "010", "A", 1), (2, "11", "B", 2)]


def test_recbole_with_the_provider_in_item_and_other_names(tmp_path):
    inter = "who:token\twhat:token\twhen:float\nu\t10\t5\nv\t11\t6\nv\t12\t7\nv\t13\t8\n"
    item = 'what:token\ttitle:token_seq\tbrand:token\n10\tsays "hi\tacme\n11\t\tzeta\n12\tx\t\nbroken\n'
    columns = {"user": "who", "item": "what", "provider": "brand", "timestamp": "when"}
    found = read(tmp_path, "recbole", {"shop.inter": inter, "shop.item": item}, columns=columns)
    assert rows(found) == [("u", 10, "acme", 5), ("v", 11, "zeta", 6)]
    assert left_out(found) == {"no provider": 2, "unusable line of shop.item": 1}
    assert first(found) == {"no provider": "shop.inter, line 4", "unusable line of shop.item": "shop.item, line 5"}


def test_recbole_packed_is_the_same(tmp_path):
    files = {
        "shop.inter.gz": "user_id:token\titem_id:token\ttimestamp:float\n1\t10\t5\n",
        "shop.item.gz": "item_id:token\tseller_id:token\n10\t7\n",
    }
    assert rows(read(tmp_path, "recbole", files)) == [(1, 10, 7, 5)]


def test_recbole_fields_may_have_any_name(tmp_path):
    inter = "row:token\tline:token\tfields_fit:token\tuser_id:token\ttimestamp:float\n1\t2\t3\t4\t5\n"
    columns = {"user": "line", "item": "fields_fit", "provider": "row"}
    assert rows(read(tmp_path, "recbole", {"shop.inter": inter}, columns=columns)) == [(2, 3, 1, 5)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1\t9\t10\t1.0", "wrong number of fields"),
        (b"1\t9\t10\t1.0\t5\t", "wrong number of fields"),
        (b"\t9\t10\t1.0\t5", "empty id"),
        (b"1\t\t10\t1.0\t5", "no provider"),
        (b"1\t9\t\xff\t1.0\t5", "not UTF-8"),
        (b"1\t9\t10\t1.0\tsoon", "bad time"),
        (b"1\t9\t10\t1.0\tnan", "bad time"),
        (b"1\t9\t10\t1.0\t", "bad time"),
    ],
)
def test_recbole_row_that_is_none_is_counted(tmp_path, line, reason):
    found = read(tmp_path, "recbole", {"shop.inter": (INTER_HEADER + INTER).encode() + line + b"\n"})
    assert len(rows(found)) == 3
    assert left_out(found) == {reason: 1}
    assert first(found) == {reason: "shop.inter, line 5"}


@pytest.mark.parametrize(
    ("files", "columns", "message"),
    [
        ({"a.inter": INTER_HEADER + INTER}, {"provider": "shop"}, "shop is missing, found .*no a.item.*--provider-col"),
        ({"a.inter": INTER_HEADER + INTER}, {"user": "who"}, "field who is missing.*--user-column"),
        ({"a.inter": INTER_HEADER + INTER}, {"provider": "rating"}, "rating is of type float, expected token"),
        ({"a.inter": "user_id\titem_id\n1\t2\n"}, {}, "expected different field:type names separated by tabs"),
        (
            {"a.inter": "user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n", "a.item": "item_id:token\n2\n"},
            {},
            r"a\.item: field seller_id is missing",
        ),
        ({"a.inter": INTER_HEADER, "b.inter": INTER_HEADER}, {}, "found 2 such files"),
        ({"a.csv": INTER_HEADER}, {}, r"looked for \*\.inter"),
    ],
)
def test_recbole_that_is_none_is_refused(tmp_path, files, columns, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, "recbole", files, columns=columns)


# Amazon, the form of S3-Rec


def test_amazon_excerpt_of_s3rec_is_the_shared_data_set(tmp_path, shared_data):
    folder = shared_data / "amazon-toys-brand"
    found = read_interactions(
        folder / "raw", tmp_path, input_format="amazon", columns={}, action=None, on_conflict="error"
    )
    names = ["user_id", "item_id", "provider_id", "timestamp"]
    made = found.table.select(names).sort("user_id", "timestamp").collect()
    expected = pl.read_parquet(folder / "interactions.parquet").select(names)
    assert made.equals(expected.filter(pl.col("user_id") <= 3_000))
    assert found.left_out == ()


S3REC = {
    "Toys.txt": "1 10 11 12\n2 13 10\n3 14\n",
    "Toys_item2attributes.json": json.dumps({"10": [1, 2], "11": [5, 2], "12": [1, 3], "13": [5, 3], "14": [3, 2]}),
}


def test_amazon_samples_beside_the_histories_are_not_read(tmp_path):
    found = read(tmp_path, "amazon", S3REC | {"Toys_sample.txt": "1 20 21 22\n"})
    assert rows(found) == rows(read(tmp_path, "amazon", S3REC, "Toys.txt"))


@pytest.mark.parametrize("source", [".", "Toys.txt"])
def test_amazon_brand_is_the_first_attribute_that_is_no_category(tmp_path, source):
    # 1 is the most frequent (10 and 12), 3 is a category of 12: neither is a brand.
    found = read(tmp_path, "amazon", S3REC, source)
    assert rows(found) == [
        (1, 10, "item:10", 0),
        (1, 11, "brand:5", 1),
        (1, 12, "item:12", 2),
        (2, 13, "brand:5", 0),
        (2, 10, "item:10", 1),
        (3, 14, "item:14", 0),
    ]


def test_amazon_history_that_is_damaged_is_counted(tmp_path):
    text = "1 10 x 12\nyou 10 11\n7\n\n8  10\t11 \n"
    found = read(tmp_path, "amazon", S3REC | {"Toys.txt": text})
    assert [row[:2] for row in rows(found)] == [(1, 10), (1, 12), (8, 10), (8, 11)]
    assert left_out(found) == {"id is not an integer": 3, "wrong number of fields": 2}
    assert first(found) == {"id is not an integer": "Toys.txt, line 1", "wrong number of fields": "Toys.txt, line 3"}


# Amazon, the releases

ASINS = ("B00004TWVI", "0439893577", "B000000007")
REVIEWERS = ("A1VXOAVRGKGEAK", "A8R62G708TSCM")
META = json.dumps({"asin": ASINS[0], "brand": " Acme "}) + "\n" + json.dumps({"asin": ASINS[1], "brand": ""}) + "\n"
RELEASE_ROWS = [
    (REVIEWERS[0], ASINS[0], "brand:Acme", 1365811200),
    (REVIEWERS[1], ASINS[1], f"item:{ASINS[1]}", 1400000000),
    (REVIEWERS[1], ASINS[2], f"item:{ASINS[2]}", 1400000001),
]
RATINGS_2014 = "".join(f"{user},{item},5.0,{time}\n" for user, item, _, time in RELEASE_ROWS)
RATINGS_2018 = "".join(f"{item},{user},5.0,{time}\n" for user, item, _, time in RELEASE_ROWS)
RATINGS_2023 = "user_id,parent_asin,rating,timestamp\n" + RATINGS_2014
RATINGS_BY_NAME = "timestamp,history,parent_asin,user_id\n" + "".join(
    f"{time},B1 B2,{item},{user}\n" for user, item, _, time in RELEASE_ROWS
)
REVIEWS = "".join(
    json.dumps({"reviewerID": user, "asin": item, "reviewText": "Fun, \u2026", "unixReviewTime": time}) + "\n"
    for user, item, _, time in RELEASE_ROWS
)
REVIEWS_2023 = "".join(
    json.dumps({"user_id": user, "asin": "B0VARIANT1", "parent_asin": item, "timestamp": time}) + "\n"
    for user, item, _, time in RELEASE_ROWS
)
META_2023 = json.dumps({"parent_asin": ASINS[0], "store": "Acme"}) + "\n"


@pytest.mark.parametrize(
    "files",
    [
        {"ratings_Toys.csv": RATINGS_2014, "meta_Toys.json.gz": META},
        {"Toys.csv": RATINGS_2018, "meta_Toys.json": META},
        {"Toys.csv.gz": RATINGS_2023, "meta_Toys.jsonl": META_2023},
        {"reviews_Toys_5.json.gz": REVIEWS, "meta_Toys.json.gz": META},
        {"Toys.jsonl": REVIEWS_2023, "meta_Toys.jsonl": META_2023},
        {"Toys.csv": RATINGS_BY_NAME, "meta_Toys.json": META},
        {"Toys.csv": "\ufeff" + RATINGS_2023, "meta_Toys.json": META},
        {"Toys.csv": "\ufeff" + RATINGS_2014, "meta_Toys.json": META},
        {"Toys.json": "\ufeff" + REVIEWS, "meta_Toys.json": "\ufeff" + META},
        {"Toys.json": REVIEWS, "meta_Toys.json": META, "readme.txt": "Toys, downloaded today"},
        {"Toys.json": REVIEWS, "meta_Toys.json": str({"asin": ASINS[0], "brand": "Acme", "title": 'it\'s "1"'}) + "\n"},
    ],
    ids=[
        "ratings of 2014",
        "ratings of 2018",
        "ratings of 2023",
        "reviews of 2014",
        "reviews of 2023",
        "ratings by name",
        "ratings of 2023 with a mark",
        "ratings of 2014 with a mark",
        "reviews with a mark",
        "readme",
        "dictionaries",
    ],
)
def test_amazon_releases(tmp_path, files):
    found = read(tmp_path, "amazon", files)
    assert rows(found) == RELEASE_ROWS
    assert left_out(found) == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not a JSON object"),
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"__import__('os').abort()", "not a JSON object"),
        (b"(" * 100_000, "not a JSON object"),
        (b'{"reviewerID": "\xff"}', "not a JSON object"),
        (b'{"asin": "B00004TWVI", "unixReviewTime": 1}', "empty id"),
        (b'{"reviewerID": "A1", "asin": null, "unixReviewTime": 1}', "empty id"),
        (b'{"reviewerID": "A1", "asin": "\\ud800", "unixReviewTime": 1}', "empty id"),
        (b'{"reviewerID": "A1", "asin": "B1"}', "bad time"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": "2 1, 2014"}', "bad time"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": true}', "bad time"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 9223372036854775808}', "bad time"),
    ],
)
def test_amazon_review_that_is_none_is_counted(tmp_path, line, reason):
    found = read(tmp_path, "amazon", {"Toys.json": REVIEWS.encode() + line + b"\n", "meta_Toys.json": META})
    assert rows(found) == RELEASE_ROWS
    assert left_out(found) == {reason: 1}
    assert first(found) == {reason: "Toys.json, line 4"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("A1VXOAVRGKGEAK,B00004TWVI,5.0", "wrong number of fields"),
        ("A1VXOAVRGKGEAK,,5.0,1365811200", "empty id"),
        ("A1VXOAVRGKGEAK,B00004TWVI,5.0,2014-01-01", "bad time"),
    ],
)
def test_amazon_rating_that_is_none_is_counted(tmp_path, line, reason):
    found = read(tmp_path, "amazon", {"Toys.csv": RATINGS_2014 + line + "\n", "meta_Toys.json": META})
    assert rows(found) == RELEASE_ROWS
    assert left_out(found) == {reason: 1}


def test_amazon_metadata_that_is_no_use_is_counted_as_such(tmp_path):
    meta = "{\n" + META + '{"brand": "Acme"}\n' + json.dumps({"asin": ASINS[2], "brand": ["Acme"]}) + "\n"
    found = read(tmp_path, "amazon", {"Toys.json": REVIEWS, "meta_Toys.json": meta})
    assert rows(found) == RELEASE_ROWS
    assert left_out(found) == {"unusable line of meta_Toys.json": 2}
    assert first(found) == {"unusable line of meta_Toys.json": "meta_Toys.json, line 1"}


def test_amazon_product_with_two_brands_is_refused_or_gets_the_last(tmp_path):
    files = {"Toys.json": REVIEWS, "meta_Toys.json": META + json.dumps({"asin": ASINS[0], "brand": "Zeta"}) + "\n"}
    assert "item B00004TWVI has two providers, brand:Acme and brand:Zeta" in refused(tmp_path, "amazon", files)
    assert rows(read(tmp_path, "amazon", files, on_conflict="last"))[0][2] == "brand:Zeta"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"Toys.json": REVIEWS}, r"looked for one file meta_.*found Toys\.json; put the two"),
        ({"Toys.json": REVIEWS, "Toys.csv": RATINGS_2014, "meta_Toys.json": META}, "looked for one file meta_"),
        ({"readme.md": ""}, "found none of them"),
        ({"Toys.csv": "1,2,3,4\n", "meta_Toys.json": META}, "cannot tell users from items"),
        ({"Toys.csv": RATINGS_2014 + RATINGS_2018, "meta_Toys.json": META}, "cannot tell users from items"),
        ({"Toys.txt": "1 2\n"}, r"looked for \*_item2attributes\*\.json"),
        ({"Toys_item2attributes.json": "{}", "other.txt": "1 2\n"}, r"Toys\.txt is not there"),
        (S3REC | {"Toys_item2attributes.json": "[1]"}, "is not one JSON object"),
        (S3REC | {"Toys_item2attributes.json": '{"1": {"a": 1}}'}, "is not one JSON object"),
        (S3REC | {"Toys_item2attributes.json": '{"1": "brand"}'}, "is not one JSON object"),
    ],
)
def test_amazon_that_is_none_is_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, "amazon", files)


# All formats

SMALL: dict[str, dict[str, str | bytes]] = {
    "tmall": {"ijcai2016_taobao.csv": TAOBAO_HEADER + TAOBAO},
    "twitch": {"100k.csv": TWITCH},
    "wechat": wechat(ACTIONS_HEADER + ACTIONS),
    "recbole": {"shop.inter": INTER_HEADER + INTER},
    "amazon": {"Toys.json": REVIEWS, "meta_Toys.json": META},
    "generic": {"i.csv": "user_id,item_id,provider_id,timestamp\n1,2,3,4\n1,3,3,5\n"},
}


def test_formats_of_the_command_line_are_those_of_the_library():
    assert get_args(InputFormat) == FORMATS
    assert set(SMALL) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_dataset_says_what_it_was_made_from(tmp_path, name):
    source = write(tmp_path / "input", SMALL[name])
    report = prepare(source, tmp_path / "dataset", input_format=name, **EVERYTHING)
    info = open_dataset(tmp_path / "dataset").info
    assert info["input"] == {"format": name, "action": "buy" if name == "tmall" else None, "merge_repeats": False}
    assert info["left_out"] == ({"other action": 1} if name == "tmall" else {})
    assert info["left_out_first"] == ({"other action": "ijcai2016_taobao.csv, line 3"} if name == "tmall" else {})
    assert report.to_json()["left_out"] == info["left_out"]
    files = sorted(path.name for path in (tmp_path / "dataset").iterdir())
    assert files == ["catalog.parquet", "dataset.json", "histories.parquet", "providers.parquet"]


@pytest.mark.parametrize("name", FORMATS)
def test_folders_may_have_brackets_and_stars_in_their_names(tmp_path, name):
    source = write(tmp_path / "[in]*", SMALL[name])
    folders = [tmp_path / "[out]*", tmp_path / "out"]
    reports = [prepare(source, folder, input_format=name, **EVERYTHING) for folder in folders]
    assert reports[0].fingerprint == reports[1].fingerprint
    for file in folders[1].iterdir():
        assert file.read_bytes() == (folders[0] / file.name).read_bytes()


@pytest.mark.parametrize(("name", "line"), [("tmall", TAOBAO_HEADER), ("twitch", "1,2,3\n"), ("recbole", "\n")])
def test_input_of_which_nothing_can_be_used_is_refused_and_leaves_nothing(tmp_path, name, line):
    file = next(iter(SMALL[name]))
    head = INTER_HEADER if name == "recbole" else TAOBAO_HEADER if name == "tmall" else ""
    source = write(tmp_path / "input", {file: head + line * 5})
    with pytest.raises(DataError, match=r"no line is an interaction .*: 5 .first: .*line"):
        prepare(source, tmp_path / "dataset", input_format=name)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


@pytest.mark.parametrize("name", ["tmall", "wechat", "recbole"])
def test_first_line_that_is_no_header_does_not_fill_the_screen(tmp_path, name):
    files = SMALL[name] | {next(iter(SMALL[name])): "1,2\t3\r" * 90_000}
    message = refused(tmp_path, name, files)
    assert "the first line has 540000 bytes" in message
    assert len(message) < 500


@pytest.mark.parametrize("name", ["tmall", "generic"])
def test_disk_without_room_is_not_blamed_on_the_input_alone(tmp_path, name, rng):
    resource = pytest.importorskip("resource")
    numbers = rng.integers(0, 1 << 60, (30_000, 2))
    head = TAOBAO_HEADER if name == "tmall" else "user_id,x,item_id,provider_id,timestamp,y\n"
    text = head + "".join(f"{user},1,{item},1,1,20150701\n" for user, item in numbers)
    source = write(tmp_path / "input", {next(iter(SMALL[name])): text})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be read, or not be copied beside the output .* is there room\?"):
            prepare(source, tmp_path / "dataset", input_format=name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "tmall"])
def test_action_is_refused_where_there_are_none(tmp_path, name):
    assert f"--action is for --format tmall, {name} has no actions" in refused(
        tmp_path, name, SMALL[name], action="buy"
    )


@pytest.mark.parametrize("name", ["tmall", "twitch", "wechat", "amazon"])
def test_column_names_are_refused_where_they_are_known(tmp_path, name):
    message = refused(tmp_path, name, SMALL[name], columns={"item": "x"})
    assert "--item-column is for --format generic and recbole" in message


@pytest.mark.parametrize("name", FORMATS)
def test_input_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"is not there|is no folder"):
        prepare(tmp_path / "nowhere", tmp_path / "dataset", input_format=name)


# Repeats


def test_merging_keeps_the_latest_interaction_of_a_user_with_an_item(tmp_path, rng):
    table = pl.DataFrame(
        {
            "user_id": rng.integers(0, 9, 500),
            "item_id": rng.integers(0, 30, 500),
            "timestamp": rng.integers(0, 20, 500),
        }
    ).with_columns(provider_id=pl.col("item_id") % 4)
    table.write_parquet(tmp_path / "i.parquet")
    report = prepare(tmp_path / "i.parquet", tmp_path / "dataset", merge_repeats=True, **EVERYTHING)
    expected: dict[int, list[int]] = {}
    for user, item, _, _ in sorted(table.rows(), key=lambda row: row[2]):  # sorted() is stable
        history = expected.setdefault(user, [])
        if item in history:
            history.remove(item)
        history.append(item)
    histories = read_histories(open_dataset(tmp_path / "dataset"))
    found = dict(zip(histories["user_id"].to_pylist(), histories["item_history"].to_pylist(), strict=True))
    assert found == expected
    kept = sum(map(len, expected.values()))
    assert report.before.interactions == kept
    assert report.to_json()["left_out"] == {"repeat merged": 500 - kept}
    assert report.to_json()["left_out_first"] == {}


def test_merging_does_not_depend_on_the_chunk(tmp_path, small_interactions, monkeypatch):
    from ipsrec_train.repeats import merge_repeats

    pl.DataFrame(small_interactions).write_parquet(tmp_path / "i.parquet")
    fingerprints = set()
    for size in (1, 100, 1 << 20):
        monkeypatch.setitem(merge_repeats.__kwdefaults__, "chunk_interactions", size)
        report = prepare(tmp_path / "i.parquet", tmp_path / f"{size}", merge_repeats=True)
        fingerprints.add(report.fingerprint)
    assert len(fingerprints) == 1
