"""Who competes: which runtime, on what file, at how many bits, and against whom it is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# What a runtime needs, by distribution; the first one's version is the runtime's.
DISTRIBUTIONS = {
    "ours": ("onnxruntime", "numpy"),
    "llama.cpp": ("llama-cpp-python", "numpy"),
    "genai": ("onnxruntime-genai", "onnxruntime", "numpy"),
    "optimum": ("optimum-onnx", "onnxruntime", "optimum", "torch", "transformers"),
}
# Weight bits -> whose speed is 1.
REFERENCES = {32: "llama.cpp-F32", 8: "llama.cpp-Q8_0", 4: "llama.cpp-Q4_0"}


@dataclass(frozen=True)
class Contestant:
    """A runtime and a kind of file.

    bits: of the blocks' weights. recipe: what the file is made by, for ours the options of
    ``slmq-edge export``. about: what is stored and computed, in words.
    """

    name: str
    runtime: str
    bits: int
    recipe: tuple[str, ...]
    about: str


@dataclass(frozen=True)
class Entry:
    """A contestant in one interpreter: a row. label: unique among rows."""

    label: str
    contestant: Contestant
    python: Path
    versions: dict[str, str]


def _ours(name: str, bits: int, about: str, *options: str) -> Contestant:
    scheme = name.removesuffix(FOUR_BITS)
    return Contestant(f"ours-{name}", "ours", bits, ("--scheme", scheme, *options), about)


def _llama(kind: str, bits: int) -> Contestant:
    about = f"every matrix {kind}, the table too; norms F32; F16 cache"
    return Contestant(f"llama.cpp-{kind}", "llama.cpp", bits, (kind,), about)


HEAD = ("--lm-head", "int8")
FOUR_BITS = "-int4-head"  # as the peers' files of 4 bits have it
_ALL = (
    _ours("fp32", 32, "float"),
    _llama("F32", 32),
    Contestant("optimum-fp32", "optimum", 32, (), "optimum's own export; logits of all positions"),
    _ours("w8a8", 8, "int8 x int8, by channel and token; table and lm_head int8", *HEAD),
    _llama("Q8_0", 8),
    _ours(
        f"w4a8-b128{FOUR_BITS}",
        4,
        "int4 x int8, blocks of 128 share scales; table, lm_head too",
        *("--lm-head", "int4"),
    ),
    _ours("w4a8-b32", 4, "int4 x int8, blocks of 32 share scales; table, lm_head int8", *HEAD),
    _ours("w4a16-g32", 4, "int4 weights alone, groups of 32; table and lm_head float"),
    Contestant("genai-int4", "genai", 4, ("int4",), "its builder's int4, table and lm_head too"),
    _llama("Q4_0", 4),
)
CONTESTANTS: dict[str, Contestant] = {contestant.name: contestant for contestant in _ALL}


def missing(contestant: Contestant, versions: dict[str, str]) -> str | None:
    """Why a contestant cannot run where these distributions are installed; ``None``: it can."""
    lacks = [name for name in DISTRIBUTIONS[contestant.runtime] if name not in versions]
    return f"not installed: {', '.join(lacks)}" if lacks else None


def entries(
    names: tuple[str, ...],
    ours: tuple[tuple[Path, dict[str, str]], ...],
    optimum: tuple[Path, dict[str, str]],
    peers: tuple[Path, dict[str, str]],
) -> list[Entry]:
    """A row for each contestant and interpreter that it is to run in.

    Args:
        names: of contestants.
        ours: interpreters for our rows, each with its distributions and their versions.
        optimum: the same for optimum, which needs torch.
        peers: the same for the rest.

    Raises:
        ValueError: two of ours have the same onnxruntime, so that no label tells them apart.
    """
    seats = {"ours": ours, "optimum": (optimum,)}
    made = []
    for contestant in (CONTESTANTS[name] for name in names):
        for python, versions in seats.get(contestant.runtime, (peers,)):
            label = contestant.name
            if contestant.runtime == "ours":
                label += f" (onnxruntime {versions.get('onnxruntime', 'missing')})"
            made.append(Entry(label, contestant, python, _relevant(contestant, versions)))
    labels = [entry.label for entry in made]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"two interpreters make the same row: {twice[0]}")
    return made


def _relevant(contestant: Contestant, versions: dict[str, str]) -> dict[str, str]:
    wanted = DISTRIBUTIONS[contestant.runtime]
    return {name: versions[name] for name in wanted if name in versions}
