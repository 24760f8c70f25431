"""What `ipsrec score` says of a job when it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ipsrec_onnx.approximate_recall import Recall
from ipsrec_onnx.card_search import SearchCounts
from ipsrec_onnx.job_plan import PlanCheck
from ipsrec_onnx.score_counts import ScoreCounts


@dataclass(frozen=True)
class ScoreReport:
    """What a job did.

    Attributes:
        output: the file of candidates, or their folder.
        manifest: the JSON account of it all.
        bad_rows: the file of malformed rows; None unless they were to be diverted.
        model_sha256: of the model file.
        counts: the account of rows and ids, those of parts that were done before among them.
        resumed_rows: users of parts that were done before.
        carried_users: users whose lists this run carried over from an earlier output.
        allowed_items: items that could be recommended.
        unknown_allow_items: ids of the allow list that the catalog does not know.
        unknown_deny_items: likewise of the deny list.
        approximate: how good the lists of an approximate search are; None for exact ones.
        gpu_search: how often a GPU's search was enough; None where the CPU searched.
        cpu_s: processor seconds of each stage, all threads together: read, map, encode, retrieve, lay_out, write.
        start_s: seconds from start to the first user: opening the model, laying out the items.
        wall_s: seconds from start to the finished file.
        users_per_s: users read per second of them, without those of parts that were done before.
        peak_memory_bytes: that this process has had at most, since it began; 0 where the system does not say.
        output_bytes: of the candidates.
        plan: how wrong a plan of this job was; None without one, or where parts were done before.
        report: the page of the job; None where none was asked for.
        report_s: seconds that it took, after the others.
    """

    output: str
    manifest: str
    bad_rows: str | None
    model_sha256: str
    counts: ScoreCounts
    resumed_rows: int
    carried_users: int
    allowed_items: int
    unknown_allow_items: int
    unknown_deny_items: int
    approximate: Recall | None
    gpu_search: SearchCounts | None
    cpu_s: dict[str, float]
    start_s: float
    wall_s: float
    users_per_s: float
    peak_memory_bytes: int
    output_bytes: int
    plan: PlanCheck | None = None
    report: str | None = None
    report_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Give everything as one flat JSON object."""
        report = asdict(self)
        return {**report.pop("counts"), **report}
