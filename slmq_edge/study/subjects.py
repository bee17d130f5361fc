"""What was made, each with all that is known of it: joined by digest, never by name.

A run and an evaluation stand in one row where both are of one bundle.json; what has another digest
is another subject, though its method and scheme be the same. A model that was scored without an
artifact (by transformers), and a checkpoint that was (simulated), are subjects too.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmq_edge.results import Run
from slmq_edge.runner import manifest
from slmq_edge.sides import FLOAT_SCHEMES, key
from slmq_edge.study.collect import Filed, Manifest, Study
from slmq_edge.tracks.accuracy.results import Evaluation

NONE = "none"
# dtype of a model that was scored as it is -> scheme.
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# What scores a model as it is, which evaluations call torch; and a checkpoint.
TRANSFORMERS, SIMULATED = "transformers", "simulated"
TORCH = "torch"


@dataclass(frozen=True, eq=False)
class Subject:
    """An artifact, or a model that was scored as it is; each is one object, and equals itself.

    model: name, and ``@revision`` where it has one. scheme: what ran. asked: what was asked, where
    that is another. runtime: of the bundle, or transformers or simulated. digest: of bundle.json or
    checkpoint.json, of a model over its files; ``None`` where nobody tells. apart: what tells it
    from others of its name.
    """

    model: str
    method: str
    scheme: str
    asked: str | None
    runtime: str
    digest: str | None
    apart: str = ""
    manifest: Filed[Manifest] | None = None
    runs: tuple[Filed[Run], ...] = ()
    evaluations: tuple[Filed[Evaluation], ...] = ()

    @property
    def name(self) -> str:
        """``smoothquant w8a8``, and what tells it apart."""
        return " ".join(part for part in (self.method, self.scheme, self.apart) if part)

    @property
    def is_float(self) -> bool:
        return self.method == NONE and self.scheme in FLOAT_SCHEMES

    @property
    def is_artifact(self) -> bool:
        """Whether it is what a device runs."""
        return self.runtime not in (TRANSFORMERS, SIMULATED)


def subjects(study: Study) -> tuple[Subject, ...]:
    """Of everything in the study; models as they come, floats first, then by method and scheme."""
    found: dict[tuple[str, ...], Subject] = {}

    def at(one: Subject) -> tuple[str, ...]:
        place: tuple[str, ...] = (one.model, one.runtime, one.method, one.scheme)
        if one.digest:
            # A model's files are the same in every dtype; an artifact is its digest.
            place = (*place, one.digest) if one.runtime == TRANSFORMERS else (one.digest,)
        found.setdefault(place, one)
        return place

    for made in study.manifests:
        place = at(_of_manifest(made.value))
        found[place] = dataclasses.replace(found[place], manifest=made)
    for run in study.runs:
        place = at(_of_run(run.value))
        found[place] = dataclasses.replace(found[place], runs=(*found[place].runs, run))
    for scored in study.evaluations:
        place = at(_of_evaluation(scored.value))
        told = _together(found[place].evaluations, scored)
        found[place] = dataclasses.replace(found[place], evaluations=told)
    used = [one for one in found.values() if one.runs or one.evaluations or _is_bundle(one)]
    models = list(dict.fromkeys(one.model for one in used))
    ranked = sorted(used, key=lambda one: (models.index(one.model), *_order(one)))
    return tuple(_told_apart(ranked))


def _together(
    before: tuple[Filed[Evaluation], ...], scored: Filed[Evaluation]
) -> tuple[Filed[Evaluation], ...]:
    """What was scored by the same in several files, task by task, is one evaluation."""
    for place, one in enumerate(before):
        shared = {task.name for task in one.value.tasks} & {t.name for t in scored.value.tasks}
        if not shared and one.value.identity == scored.value.identity:
            value = dataclasses.replace(
                one.value,
                seconds=one.value.seconds + scored.value.seconds,
                sequences=one.value.sequences + scored.value.sequences,
                tokens=one.value.tokens + scored.value.tokens,
                tasks=(*one.value.tasks, *scored.value.tasks),
                next_tokens=(*one.value.next_tokens, *scored.value.next_tokens),
                tokens_before=one.value.tokens_before + scored.value.tokens_before,
            )
            joined = Filed(f"{one.path} {scored.path}", value)
            return (*before[:place], joined, *before[place + 1 :])
    return (*before, scored)


def _is_bundle(one: Subject) -> bool:
    return one.manifest is not None and one.manifest.value.kind == "bundle"


def _order(one: Subject) -> tuple[Any, ...]:
    return not one.is_float, one.method != NONE, one.method, _bits_last(one.scheme), one.runtime


def _bits_last(scheme: str) -> tuple[int, str]:
    """w8 before w4: from what loses least."""
    digits = scheme[1:2]
    return (-int(digits) if scheme.startswith("w") and digits.isdigit() else 0, scheme)


def _of_manifest(made: Manifest) -> Subject:
    document = manifest.described(made.document)
    is_bundle = made.kind == "bundle"
    scheme = document.get("scheme")
    named = scheme.get("name") if isinstance(scheme, Mapping) else scheme
    ran = document.get("scheme_ran") if is_bundle else named
    return _subject(
        model=document.get("model") if is_bundle else document.get("source"),
        method=document.get("method"),
        ran=ran,
        asked=document.get("scheme_requested") if is_bundle else ran,
        runtime=manifest.kind_of(document) if is_bundle else SIMULATED,
        digest=made.sha256,
    )


def _of_run(run: Run) -> Subject:
    made = run.artifact
    return _subject(
        model=made.model,
        method=made.method,
        ran=made.scheme_ran,
        asked=made.scheme_requested,
        runtime=str(made.runtime.get("kind", "ort")),
        digest=made.bundle_sha256,
    )


def _of_evaluation(scored: Evaluation) -> Subject:
    who = scored.identity
    dtype = str(who.get("dtype", ""))
    ran = who.get("scheme") or DTYPES.get(dtype, dtype)
    return _subject(
        model=who.get("model"),
        method=who.get("method") or NONE,
        ran=ran,
        asked=ran,
        runtime=_scored_by(who),
        digest=who.get("bundle_sha256") or who.get("checkpoint_sha256") or _of_files(who),
    )


def _scored_by(who: Mapping[str, Any]) -> str:
    runtime = str(who.get("runtime", TORCH))
    return TRANSFORMERS if runtime == TORCH and not who.get("bundle_sha256") else runtime


def _of_files(who: Mapping[str, Any]) -> str | None:
    """Of a model that was scored as it is: two folders of one name may hold two models."""
    files = who.get("files")
    return hashlib.sha256(key(files).encode()).hexdigest() if files else None


def _subject(
    model: object, method: object, ran: object, asked: object, runtime: str, digest: str | None
) -> Subject:
    return Subject(
        model=model_name(model),
        method=str(method),
        scheme=str(ran),
        asked=None if asked in (ran, None) else str(asked),
        runtime=runtime,
        digest=digest,
    )


def model_name(model: object) -> str:
    """``NAME`` or ``NAME@REVISION``, of a name or of a manifest's record of a model."""
    if not isinstance(model, Mapping):
        return str(model)
    name, revision = str(model.get("name")), model.get("revision")
    return f"{name}@{revision}" if revision else name


def _told_apart(listed: Sequence[Subject]) -> Iterable[Subject]:
    """Give those of one model, method, scheme and runtime what differs between them."""
    for one in listed:
        same = [other for other in listed if _called(other) == _called(one)]
        if len(same) == 1:
            yield one
            continue
        for words in (_head, _weights, _protected, _digest):
            told = [words(other) for other in same]
            if len(set(told)) == len(told):
                yield dataclasses.replace(one, apart=words(one))
                break
        else:
            yield one


def _called(one: Subject) -> tuple[str, ...]:
    return one.model, one.method, one.scheme, one.runtime


def lowering(one: Subject) -> Mapping[str, Any]:
    """What a bundle says of how it was written; what a run says of it, where there is no bundle."""
    if one.manifest is not None and one.manifest.value.kind == "bundle":
        return manifest.described(one.manifest.value.document)
    return dataclasses.asdict(one.runs[0].value.artifact) if one.runs else {}


def _head(one: Subject) -> str:
    head = lowering(one).get("lm_head")
    return f"head {head}" if head else ""


def _weights(one: Subject) -> str:
    return str(lowering(one).get("weights") or "")


def _protected(one: Subject) -> str:
    kept = lowering(one).get("protected")
    return f"{len(kept)} protected" if kept else ""


def _digest(one: Subject) -> str:
    return (one.digest or "")[:8]
