"""Promise 2: the artifact computes what its simulation promised, or no speed is printed.

The simulation leaves in ``golden.npz``, for P prompts of T tokens:

====================  =======================================================================
tokens                int64 [P, T]
top_ids               int32 [P, T, K]: the K most likely next tokens at every position
top_logprobs          float32 [P, T, K]: their log-probabilities, falling
target_logprobs       float32 [P, T-1]: log-probability of tokens[:, 1:]
margins               float32 [P, T]: best minus second-best logit
greedy                int64 [P, G]: the greedy continuation of the whole prompt
greedy_margins        float32 [P, G]: margin of each choice in it
====================  =======================================================================

One flipped rounding moves a logit by 0.2, so no bound on the largest difference can be tight.
What is bounded: the mean of KL(simulation || artifact) over positions, the perplexity, and the
choice of token wherever the simulation's margin exceeds twice its own float32 noise. The KL is
taken on K + 1 classes, the K tokens and all the rest together: a lower bound of the full KL.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Protocol

import numpy as np

from slmq_edge.errors import Damaged, SlmqError

ARRAYS = {  # name -> (dtype, dimensions)
    "tokens": ("int64", "PT"),
    "top_ids": ("int32", "PTK"),
    "top_logprobs": ("float32", "PTK"),
    "target_logprobs": ("float32", "PS"),  # S = T - 1
    "margins": ("float32", "PT"),
    "greedy": ("int64", "PG"),
    "greedy_margins": ("float32", "PG"),
}
PIECES = " in pieces"
TINY = 1e-12  # below this a probability is rounding noise of the others' sum


class Decoder(Protocol):
    """What checking and timing need from a session; `ort.Session` is one."""

    @property
    def appends(self) -> bool:
        """Whether long prompts run in pieces, of ``piece`` tokens where that is given."""

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Any]: ...

    def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
        """One more token on a cache, which can be stepped from again until the next prefill."""

    def first(self, tokens: Any, room: int) -> tuple[Any, Any]:
        """See `runner.greedy.Greedy`."""

    def next(self, token: Any, cache: Any) -> tuple[Any, Any]:
        """See `runner.greedy.Greedy`."""

    def forward(self, tokens: Any, keep: int | None = None) -> int:
        """See `runner.greedy.Greedy`."""


class Limits(NamedTuple):
    kl_limit: float
    perplexity_limit: float
    logit_noise: float


class GoldenReport(NamedTuple):
    """What was compared and how close it came. KLs are in nats per position."""

    mean_kl: float
    mean_kl_with_past: float
    perplexity: float
    reference_perplexity: float
    positions_compared: int
    positions_below_margin: int  # of these: choice of token not compared
    greedy_compared: int


class Agreement(NamedTuple):
    """Positions compared, one entry each: float64 [N] and bool [N]."""

    kl: Any
    target_logprobs: Any  # one fewer where the last position has no target
    reference_logprobs: Any
    same_choice: Any
    clear: Any  # the simulation's margin exceeds its noise


def limits(bundle: Mapping[str, Any]) -> Limits:
    section = bundle.get("golden")
    values = [section.get(name) if isinstance(section, dict) else None for name in Limits._fields]
    if not all(map(_is_limit, values)):
        raise Damaged("bundle.json is damaged: section 'golden' lacks its limits")
    return Limits(*map(float, values))  # type: ignore[arg-type]  # checked above


def _is_limit(value: object) -> bool:
    """A number that something can exceed: NaN and infinity are none, nor is true."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value >= 0


def golden_file(folder: Path, bundle: Mapping[str, Any]) -> Path:
    """Return the path of the golden arrays, which must be among the verified files."""
    section = bundle.get("golden")
    name = section.get("file") if isinstance(section, dict) else None
    if not isinstance(name, str) or name not in bundle.get("files", {}):
        raise Damaged(f"{folder}: bundle.json names no golden file among its files")
    return folder / name


def load(path: Path) -> dict[str, Any]:
    """Read ``golden.npz`` and check that the shapes of its arrays fit each other."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    sizes: dict[str, int] = {}
    for name, (dtype, dimensions) in ARRAYS.items():
        array = arrays[name]
        fits = array.dtype == dtype and array.ndim == len(dimensions)
        if not fits or any(sizes.setdefault(d, n) != n for d, n in zip(dimensions, array.shape)):
            raise Damaged(f"{path} is damaged: {name} is {array.dtype} {array.shape}")
    if min(sizes[d] for d in "PTKG") < 1 or sizes["T"] < 2 or sizes["S"] != sizes["T"] - 1:
        raise Damaged(f"{path} is damaged: its sizes are {sizes}")
    return arrays


def prompt_tokens(path: Path, count: int) -> Any:
    """Return ``count`` valid token ids: the golden tokens, repeated or cut. int64 [count]."""
    return np.resize(load(path)["tokens"].reshape(-1), count)


def check(session: Decoder, arrays: Mapping[str, Any], bounds: Limits) -> GoldenReport:
    """Compare a session with the simulation: whole prompts, with a past, and greedily.

    Raises:
        SlmqError: a figure is beyond its limit or not a number; names both.
    """
    prompts = range(arrays["tokens"].shape[0])
    if session.appends:
        _accept(_join([_in_pieces(session, arrays, p, bounds) for p in prompts]), bounds, PIECES)
    whole = _join([_whole_prompt(session, arrays, p, bounds) for p in prompts])
    past = _join([_with_past(session, arrays, p, bounds) for p in prompts])
    mean_kl = _accept(whole, bounds, "")
    mean_kl_with_past = _accept(past, bounds, " with a past")
    greedy = sum(_greedy(session, arrays, p, bounds) for p in prompts)
    return GoldenReport(
        mean_kl=mean_kl,
        mean_kl_with_past=mean_kl_with_past,
        perplexity=_perplexity(whole.target_logprobs),
        reference_perplexity=_perplexity(whole.reference_logprobs),
        positions_compared=len(whole.kl),
        positions_below_margin=int(np.count_nonzero(~whole.clear)),
        greedy_compared=greedy,
    )


def _whole_prompt(
    session: Decoder, arrays: Mapping[str, Any], prompt: int, bounds: Limits
) -> Agreement:
    logits, _ = session.prefill(arrays["tokens"][prompt : prompt + 1])
    return compare(logits[0], arrays, prompt, 0, bounds)


def _in_pieces(
    session: Decoder, arrays: Mapping[str, Any], prompt: int, bounds: Limits
) -> Agreement:
    tokens = arrays["tokens"][prompt : prompt + 1]
    logits, _ = session.prefill(tokens, piece=max(1, tokens.shape[1] // 3))
    return compare(logits[0], arrays, prompt, 0, bounds)


def _with_past(
    session: Decoder, arrays: Mapping[str, Any], prompt: int, bounds: Limits
) -> Agreement:
    """Prefill the first half, then feed the golden tokens one by one; compare those."""
    tokens = arrays["tokens"][prompt : prompt + 1]
    length = tokens.shape[1]
    half = length // 2
    _, cache = session.prefill(tokens[:, :half], 1, length - half)
    rows = []
    for position in range(half, length):
        logits, cache = session.step(tokens[:, position : position + 1], cache)
        rows.append(logits[0])
    return compare(np.concatenate(rows), arrays, prompt, half, bounds)


def compare(
    logits: Any, arrays: Mapping[str, Any], prompt: int, start: int, bounds: Limits
) -> Agreement:
    """Compare logits, float32 [N, vocab], with positions ``start`` to the end of a prompt."""
    vocabulary = logits.shape[-1]
    ids = arrays["top_ids"][prompt, start:].astype(np.int64)
    tokens = arrays["tokens"][prompt]
    lowest = min(int(ids.min()), int(tokens.min()))
    if lowest < 0 or max(int(ids.max()), int(tokens.max())) >= vocabulary:
        raise Damaged(f"the golden tokens do not fit a vocabulary of {vocabulary}")
    if logits.shape[0] != ids.shape[0]:
        raise SlmqError(
            f"golden check failed: logits for {logits.shape[0]} positions, not {ids.shape[0]}"
        )
    targets = tokens[start + 1 :]
    kl: list[float] = []
    chosen: list[float] = []
    for row, row_ids, reference in zip(logits, ids, arrays["top_logprobs"][prompt, start:]):
        logprobs = log_softmax(row)
        kl.append(lumped_kl(reference, logprobs[row_ids], len(row_ids) >= vocabulary))
        if len(chosen) < len(targets):
            chosen.append(logprobs[targets[len(chosen)]])
    return Agreement(
        kl=np.array(kl),
        target_logprobs=np.array(chosen, np.float64),
        reference_logprobs=arrays["target_logprobs"][prompt, start:].astype(np.float64),
        same_choice=logits.argmax(axis=-1) == ids[:, 0],
        clear=arrays["margins"][prompt, start:] > 2 * bounds.logit_noise,
    )


def log_softmax(logits: Any) -> Any:
    """log p_i = x_i - log sum_j exp(x_j), in float64: [vocab] -> [vocab]."""
    shifted = logits.astype(np.float64) - np.float64(logits.max())
    return shifted - np.log(np.exp(shifted).sum())


def lumped_kl(reference: Any, artifact: Any, complete: bool) -> float:
    """Return sum_i p_i (log p_i - log q_i) over K classes and one for all the rest.

    Args:
        reference: log p of the simulation's K most likely tokens [K].
        artifact: log q of the same tokens [K].
        complete: the K tokens are the whole vocabulary, so that nothing is left over.
    """
    log_p, log_q = reference.astype(np.float64), artifact.astype(np.float64)
    p = np.exp(log_p)
    divergence = float((p * (log_p - log_q))[(p > 0) | np.isnan(p)].sum())
    if complete:
        return divergence
    rest_p, rest_q = 1 - p.sum(), max(1 - float(np.exp(log_q).sum()), TINY)
    if rest_p <= TINY:
        return divergence
    return divergence + float(rest_p * np.log(rest_p / rest_q))


def _greedy(session: Decoder, arrays: Mapping[str, Any], prompt: int, bounds: Limits) -> int:
    """Continue the prompt greedily, as it is timed; return how many tokens could be compared."""
    expected, margins = arrays["greedy"][prompt], arrays["greedy_margins"][prompt]
    token, cache = session.first(arrays["tokens"][prompt : prompt + 1], len(expected))
    for position, (wanted, margin) in enumerate(zip(expected, margins)):
        if not margin > 2 * bounds.logit_noise:
            return position
        chosen = int(token[0, 0])
        if chosen != wanted:
            raise SlmqError(
                f"golden check failed: greedy token {position} of prompt {prompt} is "
                f"{chosen}; the simulation's is {wanted}, chosen by {margin:.3g} where its "
                f"noise is {bounds.logit_noise:.3g}"
            )
        if position + 1 < len(expected):
            token, cache = session.next(token, cache)
    return len(expected)


def _accept(found: Agreement, bounds: Limits, where: str) -> float:
    """Return the mean KL, or refuse. Written so that NaN is refused."""
    mean_kl = float(found.kl.mean())
    if not abs(mean_kl) <= bounds.kl_limit:  # below zero: no distribution
        _refuse(f"mean KL{where}", mean_kl, bounds.kl_limit)
    wrong = int(np.count_nonzero(found.clear & ~found.same_choice))
    if wrong:
        _refuse(f"number of clear choices{where} that differ", wrong, 0)
    if len(found.target_logprobs):
        perplexity = _perplexity(found.target_logprobs)
        change = abs(perplexity / _perplexity(found.reference_logprobs) - 1)
        if not change <= bounds.perplexity_limit:
            _refuse(f"relative change of perplexity{where}", change, bounds.perplexity_limit)
    return mean_kl


def _refuse(figure: str, value: float, limit: float) -> None:
    raise SlmqError(
        f"golden check failed: {figure} is {value:.4g}, the limit is {limit:.4g}; the "
        "artifact does not compute what its simulation did, so no speed is reported"
    )


def _perplexity(logprobs: Any) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(-logprobs.mean()))


def _join(parts: list[Agreement]) -> Agreement:
    return Agreement(*(np.concatenate(columns) for columns in zip(*parts)))
