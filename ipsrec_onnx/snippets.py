"""Writes programs to copy that recommend with a model file: Python, JavaScript and C++."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_PYTHON = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({path}, providers=["CPUExecutionProvider"])
history = {history}  # item ids, oldest first; unknown ones are dropped
item_ids, scores, counts = session.run(
    ["item_ids", "scores", "counts"],
    {{
        "item_history": np.array([history], {dtype}),
        "lengths": np.array([len(history)], np.int64),
{switch}    }},
)
for item_id, score in list(zip(item_ids[0].tolist(), scores[0].tolist()))[: counts[0]]:
    print(item_id, score)
"""
_PYTHON_SWITCH = """\
        "use_providers": np.array([True]),
"""

_JAVASCRIPT = """\
import ort from "onnxruntime-node"; // in a browser: import * as ort from "onnxruntime-web";

const session = await ort.InferenceSession.create({path});
const history = {history}; // item ids, oldest first; unknown ones are dropped
const found = await session.run({{
  item_history: new ort.Tensor("{type}", {values}, [1, history.length]),
  lengths: new ort.Tensor("int64", [BigInt(history.length)], [1]),
{switch}}});
for (let place = 0; place < Number(found.counts.data[0]); place++) {{
  console.log(String(found.item_ids.data[place]), found.scores.data[place]);
}}
"""
_JAVASCRIPT_SWITCH = """\
  use_providers: new ort.Tensor("bool", [true], [1]),
"""

_CPP = """\
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

int main() {{
  Ort::Env env;
  Ort::Session session(env, {path}, Ort::SessionOptions());  // on Windows a wide string: L"..."
  std::vector<{type}> history{history};  // item ids, oldest first; unknown ones are dropped

  Ort::AllocatorWithDefaultOptions allocator;
  const std::vector<int64_t> shape{{1, static_cast<int64_t>(history.size())}}, one{{1}};
  std::vector<Ort::Value> values;
{tensor}  values.push_back(Ort::Value::CreateTensor<int64_t>(allocator, one.data(), one.size()));
  *values.back().GetTensorMutableData<int64_t>() = shape[1];
{switch}
  const std::vector<const char*> inputs{{{inputs}}}, outputs{{"item_ids", "scores", "counts"}};
  auto found = session.Run(
      Ort::RunOptions(), inputs.data(), values.data(), inputs.size(), outputs.data(), outputs.size());
  const float* scores = found[1].GetTensorData<float>();
  const int64_t count = *found[2].GetTensorData<int64_t>();
  for (int64_t place = 0; place < count; place++) {{
    std::cout << {item_id} << " " << scores[place] << "\\n";
  }}
}}
"""
_CPP_INT64 = """\
  values.push_back(Ort::Value::CreateTensor<int64_t>(allocator, shape.data(), shape.size()));
  std::copy(history.begin(), history.end(), values.back().GetTensorMutableData<int64_t>());
"""
_CPP_STRING = """\
  values.push_back(
      Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING));
  for (size_t place = 0; place < history.size(); place++) {
    values.back().FillStringTensorElement(history[place].c_str(), place);
  }
"""
_CPP_SWITCH = """\
  values.push_back(Ort::Value::CreateTensor<bool>(allocator, one.data(), one.size()));
  *values.back().GetTensorMutableData<bool>() = true;  // use_providers
"""

_SERVER = """\
from ipsrec_onnx import Scorer

scorer = Scorer({path}, top_k=10)
history = {history}  # item ids, oldest first; unknown ones are dropped
found = scorer.score_one(history)
for item_id, score in zip(found.item_ids, found.scores):
    print(item_id, score)
"""


def edge_snippets(
    path: str, inputs: Sequence[Mapping[str, Any]], history: Sequence[int] | Sequence[str] | None = None
) -> dict[str, str]:
    """Write programs for an edge file that need nothing of this project.

    Args:
        path: of the file, as the programs are to open it.
        inputs: of its graph, as inspect() gives them: name, type and shape of each.
        history: item ids, oldest first; without it some that any reader takes for a placeholder.

    Returns:
        "Python", "JavaScript" and "C++" -> a whole program that prints an item id and its score on each line.
    """
    types = {node["name"]: node["type"] for node in inputs}
    whole = types["item_history"] == "tensor(int64)"
    switch = "use_providers" in types
    ids = _placeholder(whole=whole) if history is None else list(history)
    quoted = [str(item_id) if whole else _quote(str(item_id)) for item_id in ids]
    names = ["item_history", "lengths", *(["use_providers"] if switch else [])]
    return {
        "Python": _PYTHON.format(
            path=_quote(path),
            history=f"[{', '.join(quoted)}]",
            dtype="np.int64" if whole else "object",
            switch=_PYTHON_SWITCH if switch else "",
        ),
        "JavaScript": _JAVASCRIPT.format(
            path=_quote(path),
            history=f"[{', '.join(item_id + 'n' if whole else item_id for item_id in quoted)}]",
            type="int64" if whole else "string",
            values="BigInt64Array.from(history)" if whole else "history",
            switch=_JAVASCRIPT_SWITCH if switch else "",
        ),
        "C++": _CPP.format(
            path=_quote(path),
            history=f"{{{', '.join(quoted)}}}",
            type="int64_t" if whole else "std::string",
            tensor=_CPP_INT64 if whole else _CPP_STRING,
            inputs=", ".join(map(_quote, names)),
            switch=_CPP_SWITCH if switch else "",
            item_id="found[0].GetTensorData<int64_t>()[place]" if whole else "found[0].GetStringTensorElement(place)",
        ),
    }


def server_snippets(
    path: str, item_id_type: str, history: Sequence[int] | Sequence[str] | None = None
) -> dict[str, str]:
    """Write a program for a file of the server profile, which `ipsrec score` reads.

    Args:
        path: of the file, as the program is to open it.
        item_id_type: int64 or string.
        history: as edge_snippets.

    Returns:
        "Python" -> a whole program that prints an item id and its score on each line.
    """
    ids = _placeholder(whole=item_id_type == "int64") if history is None else list(history)
    quoted = [_quote(item_id) if isinstance(item_id, str) else str(item_id) for item_id in ids]
    return {"Python": _SERVER.format(path=_quote(path), history=f"[{', '.join(quoted)}]")}


def _placeholder(*, whole: bool) -> list[int] | list[str]:
    return [1, 2, 3] if whole else ["an item", "another item"]


def _quote(text: str) -> str:
    """A string of Python, JavaScript and C++ alike."""
    return json.dumps(text, ensure_ascii=False)
