"""Run by a Python that has numpy and one release of onnxruntime: check bundles as a device does.

usage: runtime_driver.py BUNDLE ...

Prints JSON: {"onnxruntime": version, "bundles": {name: findings}}. Findings of a bundle: the reason
alone why it is ``refused``; or, for every graph that this machine runs, what the golden check found
and what several new tokens on a past that is not empty come to: ``chunked_kl``, the mean KL
divergence, in nats, of the logits of a prompt in two pieces from those of the whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from slmq_edge.errors import SlmqError
from slmq_edge.runner import asked, golden, manifest, ort, probe
from slmq_edge.runner.manifest import GRAPH

FIRST, WHOLE = 9, 24  # tokens in the first piece of a prompt, and in all of it


def main() -> None:
    report = {
        "onnxruntime": ort.load_onnxruntime().__version__,
        "bundles": {Path(name).name: findings(Path(name)) for name in sys.argv[1:]},
    }
    json.dump(report, sys.stdout)


def findings(folder: Path) -> dict[str, Any]:
    bundle = manifest.read_bundle(folder)
    manifest.verify(folder, bundle["files"])
    try:
        ort.check_runtime(asked.runtime_section(bundle).get("minimum_version"))
    except SlmqError as error:
        return {"refused": str(error)}
    exactness = probe.run(folder, bundle, 1)
    probe.refuse_inexact(exactness, False)
    graphs = sorted({GRAPH, probe.graph_to_run(exactness)})
    return {graph: of_graph(folder, bundle, graph) for graph in graphs}


def of_graph(folder: Path, bundle: dict[str, Any], graph: str) -> dict[str, Any]:
    session = ort.open_bundle(folder, bundle, 1, graph)
    arrays = golden.load(golden.golden_file(folder, bundle))
    found = golden.check(session, arrays, golden.limits(bundle))._asdict()
    tokens = arrays["tokens"][:1, :WHOLE]
    found["chunked_kl"] = chunked(folder / graph, asked.session_settings(bundle), tokens)
    found["step_refuses"] = refuses(session, tokens)
    return found


def chunked(graph: Path, settings: dict[str, str], tokens: Any) -> float:
    """Through the graph itself: the session never sends several tokens onto a past."""
    running = ort.open_session(graph, 1, settings)
    past = [node for node in running.get_inputs() if node.name.startswith("past_key_values.")]

    def run(start: int, end: int, caches: Any) -> Any:
        feeds = {
            "input_ids": tokens[:, start:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end)[None],
        }
        feeds.update({node.name: cache for node, cache in zip(past, caches, strict=True)})
        logits, *presents = running.run(None, feeds)
        return logits[0], presents

    empty = [np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32) for node in past]
    whole, _ = run(0, WHOLE, empty)
    _, caches = run(0, FIRST, empty)
    second, _ = run(FIRST, WHOLE, caches)
    pairs = zip(whole[FIRST:], second, strict=True)
    both = [(golden.log_softmax(p), golden.log_softmax(q)) for p, q in pairs]
    return float(np.mean([(np.exp(p) * (p - q)).sum() for p, q in both]))


def refuses(session: ort.Session, tokens: Any) -> bool:
    _, cache = session.prefill(tokens[:, :FIRST], 1, WHOLE - FIRST)
    try:
        session.step(tokens[:, FIRST : FIRST + 2], cache)
    except ValueError:
        return True
    return False


if __name__ == "__main__":
    main()
