"""ONNX Runtime in Node and in WebAssembly gives the lists of ONNX Runtime in Python, and those of `ipsrec score`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edge_runtimes import (
    ROOT,
    Lists,
    Trained,
    asked,
    draw_histories,
    in_python,
    need_node_modules,
    open_browser,
    run_node,
    train_small_model,
)
from model_files import write_model_file
from training_data import MAX_LEN

from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_onnx import Scorer
from ipsrec_onnx.model_file import open_model_file

USERS, TOP_K = 200, 20
RUNTIME_FILES = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]


@dataclass(frozen=True)
class Case(Trained):
    """A trained model, and users for it."""

    histories: list[list[Any]]


@pytest.fixture(scope="module", params=["int64", "string"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A trained IPSRec-C whose catalog has ids of this type."""
    rng = np.random.default_rng(20260)
    string_ids = request.param == "string"
    trained = train_small_model(tmp_path_factory.mktemp("edge"), rng, top_k=TOP_K, string_ids=string_ids)
    ids = open_model_file(trained.model).catalog.item_ids
    return Case(trained.model, trained.edge, draw_histories(ids, rng, users=USERS, longest=3 * MAX_LEN))


def by_score(case: Case, *, use_providers: bool) -> Lists:
    scorer = Scorer(case.model, top_k=TOP_K)
    found = []
    for history in case.histories:
        providers = None if use_providers else ["of nobody"] * len(history)
        status, item_ids, scores = scorer.score_one(history, provider_history=providers)
        found.append({"itemIds": list(map(str, item_ids)), "scores": scores, "cold": status == "cold"})
    return found


def in_node(runtime: str, case: Case) -> list[Lists]:
    script = ROOT / "tests" / "recommend_users.mjs"
    done = run_node(script, runtime, case.edge, stdin=json.dumps(asked(case.histories)))
    assert done.returncode == 0, done.stderr
    found: list[Lists] = json.loads(done.stdout)
    return found


def in_chromium(case: Case) -> list[Lists]:
    """Everything is answered from files; what is not is aborted, so nothing leaves the machine."""
    dist = need_node_modules() / "onnxruntime-web" / "dist"
    files = {
        "/": b"<!DOCTYPE html><title>lists</title>",
        "/edge.onnx": case.edge.read_bytes(),
        "/recommender.js": (ROOT / "examples" / "web" / "recommender.js").read_bytes(),
        **{f"/{name}": (dist / name).read_bytes() for name in RUNTIME_FILES},
    }
    kinds = {"js": "text/javascript", "mjs": "text/javascript", "wasm": "application/wasm"}

    def answer(route: Any) -> None:
        path = route.request.url.removeprefix("http://127.0.0.1")
        if path not in files:
            route.abort()
            return
        route.fulfill(body=files[path], content_type=kinds.get(path.rpartition(".")[2], "text/html"))

    with open_browser() as browser:
        page = browser.new_page()
        page.route("**/*", answer)
        page.goto("http://127.0.0.1/")
        found: list[Lists] = page.evaluate(
            """async ({ histories, eachOptions }) => {
                const ort = await import("/ort.wasm.min.mjs");
                const { Recommender } = await import("/recommender.js");
                ort.env.wasm.numThreads = 1;
                ort.env.wasm.wasmPaths = "/";
                const recommender = await Recommender.open(ort, "/edge.onnx");
                const lists = [];
                for (const options of eachOptions) lists.push(await recommender.recommend(histories, options));
                return lists;
            }""",
            asked(case.histories),
        )
    return found


RUNTIMES: dict[str, Callable[[Case], list[Lists]]] = {
    "onnxruntime-node": lambda case: in_node("node", case),
    "onnxruntime-web in Node": lambda case: in_node("web", case),
    "onnxruntime-web in chromium": in_chromium,
}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_gives_the_lists_of_python_and_of_score(case: Case, runtime: str) -> None:
    for use_providers, found in zip((True, False), RUNTIMES[runtime](case), strict=True):
        assert len(found) == USERS
        for expected in (
            in_python(case.edge, case.histories, use_providers=use_providers),
            by_score(case, use_providers=use_providers),
        ):
            assert [user["itemIds"] for user in found] == [user["itemIds"] for user in expected]
            assert [user["cold"] for user in found] == [user["cold"] for user in expected]
            # Kernels differ from build to build, and so does the last bit of a score.
            for user, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(user["scores"], other["scores"], rtol=1e-5, atol=1e-6)


def test_the_switch_changes_lists(case: Case) -> None:
    with_providers, without = (in_python(case.edge, case.histories, use_providers=use) for use in (True, False))
    assert sum(one["itemIds"] != other["itemIds"] for one, other in zip(with_providers, without, strict=True)) > 50


def test_a_file_without_the_switch_refuses_to_leave_providers_out(tmp_path: Path) -> None:
    opened = open_model_file(write_model_file(tmp_path / "m.onnx").path)
    graph, rules = onnx.load(opened.path), EdgeRules(top_k=TOP_K)
    edge = tmp_path / "edge.onnx"
    onnx.save(build_edge_graph(graph, opened.catalog, opened.history_terms, max_len=opened.max_len, rules=rules), edge)
    history = list(map(str, opened.catalog.item_ids.to_pylist()[:3]))
    script = ROOT / "tests" / "recommend_users.mjs"
    for use_providers in (True, False):
        question = {"histories": [history], "eachOptions": [{"useProviders": use_providers}]}
        done = run_node(script, "node", edge, stdin=json.dumps(question))
        assert (done.returncode == 0) == use_providers
        assert ("this model has no switch for providers" in done.stderr) != use_providers


def test_the_example_in_node_prints_the_list_of_one_user(case: Case) -> None:
    place = next(place for place, history in enumerate(case.histories) if len(history) > MAX_LEN)
    done = run_node(ROOT / "examples" / "node" / "recommend.mjs", case.edge, *map(str, case.histories[place]))
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(rank) for rank, _, _ in rows] == list(range(1, TOP_K + 1))
    assert [item_id for _, item_id, _ in rows] == in_python(case.edge, case.histories, use_providers=True)[place][
        "itemIds"
    ]


def test_the_example_in_node_says_that_popular_items_follow(case: Case) -> None:
    done = run_node(ROOT / "examples" / "node" / "recommend.mjs", case.edge)
    assert "the popular items" in done.stderr
    popular = Scorer(case.model, top_k=TOP_K).score_one([]).item_ids
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == list(map(str, popular))


def test_the_example_in_node_refuses_a_server_model_in_one_line(case: Case) -> None:
    done = run_node(ROOT / "examples" / "node" / "recommend.mjs", case.model, "1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "this is no edge model" in done.stderr


@pytest.mark.parametrize("case", ["int64"], indirect=True)
@pytest.mark.parametrize(("item_id", "what"), [("tea", "is not a whole number"), (str(2**63), "64 bits")])
def test_the_example_in_node_refuses_ids_that_are_no_int64(case: Case, item_id: str, what: str) -> None:
    done = run_node(ROOT / "examples" / "node" / "recommend.mjs", case.edge, item_id)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and what in done.stderr
