"""Use a model file with ONNX Runtime alone, without this project: ids in, user embedding and scores out.

    python examples/plain_onnxruntime.py .demo/ipsrec_c.onnx ITEM_ID ITEM_ID ...     (oldest first)

Needs onnxruntime, numpy and pyarrow (which reads the catalog's Arrow table). As in `ipsrec score`, unknown ids are
dropped and the last max_len known ones count; its history terms and filters are left out.
"""

import base64
import json
import sys

import numpy as np
import onnxruntime
import pyarrow as pa

path, *item_ids = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
catalog = pa.ipc.open_stream(base64.b64decode(metadata["ipsrec.catalog"])).read_all()
index = {str(item_id): row for row, item_id in enumerate(catalog["item_id"].to_pylist(), start=1)}
known = [index[item_id] for item_id in item_ids if item_id in index]
if not known:
    sys.exit(f"{path} knows none of the {len(item_ids)} item ids; give at least one of its catalog")
item_history = np.array([known[-json.loads(metadata["ipsrec.settings"])["max_len"] :]], np.int32)
provider_history = catalog["provider_index"].to_numpy()[item_history - 1].astype(np.int32)
lengths = np.array([item_history.shape[1]], np.int32)
feed = {"item_history": item_history, "provider_history": provider_history, "lengths": lengths}
user_embedding, item_embeddings = session.run(["user_embedding", "item_embeddings"], feed)

print("user_embedding", np.array2string(user_embedding[0], precision=6, max_line_width=120))
scores = user_embedding[0] @ item_embeddings[1:].T
for row in np.argsort(-scores)[:10]:
    print(catalog["item_id"][row], f"{scores[row]:.4f}")
