from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from ipsrec_cli.main import main


@pytest.fixture
def source(tmp_path, small_interactions):
    path = tmp_path / "interactions.parquet"
    pq.write_table(small_interactions, path)
    return path


def ipsrec(*arguments: object) -> int:
    """Run the command line; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
        raise SystemExit(0)
    return int(stop.value.code or 0)


def test_summary_is_on_stdout_and_progress_on_stderr(source, tmp_path, capsys):
    assert ipsrec("prepare", "--input", source, "--output", tmp_path / "dataset") == 0
    out, err = capsys.readouterr()
    assert "interactions" in out
    assert "2,000" in out
    assert json.loads((tmp_path / "dataset" / "dataset.json").read_text())["fingerprint"] in out
    assert "prepare: filtering" in err


def test_json_is_one_object_and_quiet_is_quiet(source, tmp_path, capsys):
    assert ipsrec("prepare", "--input", source, "--output", tmp_path / "dataset", "--json", "--quiet") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["before"]["interactions"] == 2_000
    assert report["dataset"] == str(tmp_path / "dataset")
    assert err == ""


def test_options_reach_the_filter(source, tmp_path, capsys):
    options = (
        "--min-user-interactions 20 --min-item-interactions 3 --max-user-interactions 60 --max-item-interactions 900"
    )
    command = ["prepare", "--input", source, "--output", tmp_path / "dataset", "--format", "generic"]
    assert ipsrec(*command, *options.split(), "--on-provider-conflict", "last") == 0
    info = json.loads((tmp_path / "dataset" / "dataset.json").read_text())
    assert info["filters"] == {
        "min_user_interactions": 20,
        "max_user_interactions": 60,
        "min_item_interactions": 3,
        "max_item_interactions": 900,
    }
    assert info["provider_conflicts"] == {"settled_by": "last", "items": 0}


def test_other_column_names(tmp_path, small_interactions, capsys):
    pq.write_table(small_interactions.rename_columns(["u", "i", "p", "t"]), tmp_path / "i.parquet")
    names = "--user-column u --item-column i --provider-column p --timestamp-column t"
    assert ipsrec("prepare", "--input", tmp_path / "i.parquet", "--output", tmp_path / "d", *names.split()) == 0


def test_refusal_is_one_line_and_exit_code_1(source, tmp_path, capsys):
    command = ["prepare", "--input", source, "--output", tmp_path / "dataset", "--quiet"]
    assert ipsrec(*command) == 0
    capsys.readouterr()
    assert ipsrec(*command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ipsrec: output ")
    assert err.count("\n") == 1
    assert "--overwrite" in err
    assert ipsrec(*command, "--overwrite") == 0


def test_wrong_usage_is_exit_code_2(source, tmp_path, capsys):
    assert ipsrec("prepare", "--input", source) == 2
    assert ipsrec("prepare", "--input", source, "--output", tmp_path / "d", "--min-user-interactions", "0") == 2


TAOBAO = (
    "use_ID,sel_ID,ite_ID,cat_ID,act_ID,time\n"
    "1,7,30,4,1,20150702\n"
    "1,7,31,4,0,20150701\n"
    "2,7,31,4,1,20150703\n"
    "2,8,31,4,1,20150704\n"
    "2,8,31,4,1\n"
)
KEEP_ALL = ("--min-user-interactions", 1, "--min-item-interactions", 1)


@pytest.mark.parametrize(
    ("options", "left_out", "interactions"),
    [
        ([], {"other action": 1, "wrong number of fields": 1}, 3),
        (
            ["--action", "buy", "--merge-repeats"],
            {"other action": 1, "wrong number of fields": 1, "repeat merged": 1},
            2,
        ),
        (["--action", "click"], {"other action": 3, "wrong number of fields": 1}, 1),
        (["--action", "all"], {"wrong number of fields": 1}, 4),
    ],
    ids=["default", "merged", "click", "all"],
)
def test_format_and_action_say_what_is_left_out(tmp_path, capsys, options, left_out, interactions):
    (tmp_path / "ijcai2016_taobao.csv").write_text(TAOBAO)
    command = ["prepare", "--format", "tmall", "--input", tmp_path / "ijcai2016_taobao.csv", *KEEP_ALL, *options]
    command += ["--output", tmp_path / "dataset", "--on-provider-conflict", "last"]
    assert ipsrec(*command, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left_out"] == left_out
    assert report["left_out_first"]["wrong number of fields"] == "ijcai2016_taobao.csv, line 6"
    assert report["before"]["interactions"] == interactions
    assert json.loads((tmp_path / "dataset" / "dataset.json").read_text())["left_out"] == left_out

    assert ipsrec(*command, "--overwrite") == 0
    out = capsys.readouterr().out
    assert "left out: 1 wrong number of fields (first: ijcai2016_taobao.csv, line 6)" in out
    assert ("left out: 1 repeat merged\n" in out) == ("--merge-repeats" in options)


def test_brackets_in_names_are_shown(tmp_path, capsys):
    (tmp_path / "log[b].csv").write_text(TAOBAO)
    command = ["prepare", "--format", "tmall", "--input", tmp_path / "log[b].csv", *KEEP_ALL, "--action", "click"]
    assert ipsrec(*command, "--output", tmp_path / "d[i]") == 0
    out = capsys.readouterr().out
    assert "(first: log[b].csv, line 2)" in out
    assert "d[i]" in out


def test_recbole_takes_the_seller_unless_another_provider_is_named(tmp_path, capsys):
    (tmp_path / "shop.inter").write_text(
        "user_id:token\tseller_id:token\tbrand:token\titem_id:token\ttimestamp:float\n1\tS\tB\t5\t1\n"
    )
    command = ["prepare", "--format", "recbole", "--input", tmp_path / "shop.inter", *KEEP_ALL, "--output"]
    for folder, options, provider in (("d", [], "S"), ("e", ["--provider-column", "brand"], "B")):
        assert ipsrec(*command, tmp_path / folder, *options) == 0
        assert pq.read_table(tmp_path / folder / "providers.parquet")["provider_id"].to_pylist() == [provider]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--action", "buy"], "--action is for --format tmall"),
        (["--format", "twitch", "--user-column", "u"], "--user-column is for --format generic and recbole"),
        (["--format", "wechat"], "is no folder; name the folder"),
    ],
)
def test_option_or_input_that_does_not_fit_the_format_is_refused_in_one_line(
    source, tmp_path, capsys, options, message
):
    assert ipsrec("prepare", "--input", source, "--output", tmp_path / "d", "--quiet", *options) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_unknown_format_is_wrong_usage(source, tmp_path):
    assert ipsrec("prepare", "--input", source, "--output", tmp_path / "d", "--format", "excel") == 2
