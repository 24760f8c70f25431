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
