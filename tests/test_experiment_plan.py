from __future__ import annotations

from pathlib import Path

import pytest
from experiment_data import PLAN, make_plan, write_plan

from ipsrec_experiment.plan import TABLES, pick_rows, read_plan
from ipsrec_onnx.errors import DataError

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "experiments"


@pytest.mark.parametrize(
    "path", [None, *sorted(CONFIGS.glob("*.toml"))], ids=lambda path: path.stem if path else "paper"
)
def test_plans_that_ship_have_the_rows_of_the_papers_tables_and_can_be_trained(path):
    plan = read_plan(path)
    models = {row.model for row in plan.rows if "paper" in row.tables}
    assert models == {"gru4rec", "caser", "sasrec", "sr-gnn", "ipsrec-s", "ipsrec-c"}
    assert {table for row in plan.rows for table in row.tables} == set(TABLES)
    assert plan.row("IPSRec-C paper w/o CL").config().settings.contrastive is None
    assert plan.row("IPSRec-C paper").config().settings.contrastive is not None
    recommended = plan.row("IPSRec-C recommended").config().settings
    assert (recommended.provider_in_item, recommended.history_terms) == (True, "all")
    terms = plan.row("SASRec in+out + history terms").config().settings
    assert (terms.provider_in_item, terms.history_terms) == (True, "all")
    assert {row.model for row in plan.rows if row.baseline} == {"gru4rec", "caser", "sasrec", "sr-gnn"}
    assert plan.row(plan.reference).model == "sasrec"


def test_a_row_wins_over_what_holds_for_all_rows(tmp_path):
    plan = make_plan(tmp_path, PLAN.replace("inner_dim = 16 }\nagainst", "dim = 16, inner_dim = 16 }\nagainst"))
    assert [row.config().settings.dim for row in plan.rows] == [8, 16]
    assert [row.config().training.epochs for row in plan.rows] == [3, 3]
    assert plan.rows[0].tables == ("paper", "ablation")
    assert plan.rows[0].search == {"dropout": [0.1, 0.3]}


def test_rows_are_picked_by_their_name_or_their_models_in_the_plans_order(tmp_path):
    plan = make_plan(tmp_path)
    assert [row.name for row in pick_rows(plan, ["all"])] == ["A", "B + terms"]
    assert [row.name for row in pick_rows(plan, ["ipsrec-s"])] == ["B + terms"]
    assert [row.name for row in pick_rows(plan, ["b + TERMS", "SASRec"])] == ["A", "B + terms"]
    with pytest.raises(DataError, match="no row and no model is called 'caser'; the plan has A, B"):
        pick_rows(plan, ["A", "caser"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[[rows]]", "[[rows", "is no TOML"),
        ('reference = "A"', 'reference = "C"', "reference is 'C', expected the name of a row"),
        ('reference = "A"', "reference = 1", "reference is 1, expected a text"),
        ('reference = "A"', 'refrence = "A"', "unknown name 'refrence', expected one of reference"),
        ('name = "A"', 'name = "B + Terms"', "row 'B \\+ terms': expected a name of its own"),
        ('name = "A"', 'name = "counting"', "row 'counting': expected a name of its own"),
        ('name = "A"\n', "", "row 1 has no name"),
        ('name = "A"', 'name = "A\\nB"', "found a line break"),
        ('model = "sasrec"\n', "", "row 'A' has no model"),
        ('model = "sasrec"', 'model = "bert"', "row 'A': .*bert"),
        ('variant = "recommended"', 'variant = "best"', "row 'B \\+ terms': .*best"),
        ('table = "beyond"', 'table = "appendix"', "table is \\['appendix'\\], expected one or several of paper"),
        ('table = "beyond"', "table = []", "table is \\[\\]"),
        ("baseline = true", 'baseline = "yes"', "row 'A': baseline is 'yes', expected a bool"),
        ("dim = 8", "width = 8", "row 'A': .*width"),
        ("dim = 8", 'dim = "8"', "row 'A': .*dim is '8'"),
        ("epochs = 3", "epochs = 0", "row 'A': .*epochs is 0"),
        ("epochs = 3", "seed = 3", "row 'A': it sets the seed"),
        ("[0.1, 0.3]", "[]", "search.dropout is \\[\\], expected a list of different values"),
        ("[0.1, 0.3]", "[0.1, 0.1]", "expected a list of different values"),
        ("[0.1, 0.3]", "[0.1, 1.5]", "row 'A': .*dropout is 1.5"),
        ('["A", "Counting"]', '["C"]', "against 'C', expected another row or 'Counting'"),
        ('["A", "Counting"]', '["B + terms"]', "against 'B \\+ terms', expected another row"),
        ('["A", "Counting"]', "[1]", "against is \\[1\\], expected names of rows"),
    ],
)
def test_a_malformed_plan_is_refused_with_the_place(tmp_path, old, new, words):
    assert old in PLAN
    path = write_plan(tmp_path, PLAN.replace(old, new, 1))
    with pytest.raises(DataError, match=words) as refused:
        read_plan(path)
    assert str(path) in str(refused.value)


def test_a_plan_without_rows_or_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match="found no \\[\\[rows\\]\\]"):
        read_plan(write_plan(tmp_path, 'reference = "A"'))
    with pytest.raises(DataError, match="cannot be read"):
        read_plan(tmp_path / "absent.toml")
