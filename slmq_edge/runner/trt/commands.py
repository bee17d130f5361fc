"""Command lines of trtexec, for each release that takes other flags. Pure.

What a line says: the graph's types (strong typing; on 8.x, where there is none, the flags that
allow them), no TF32 (a float32 that is asked for is one), the profiles of `shapes`, the workspace
in MiB, the timing cache, detailed layer information, and to stop behind the build. Before 10.3
trtexec takes one profile: prefill's, into which decode fits. Sources: `versions`.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

from slmq_edge.runner.trt import shapes, versions
from slmq_edge.runner.trt.recipe import Recipe
from slmq_edge.runner.trt.shapes import Shapes
from slmq_edge.runner.trt.versions import Version

WORKSPACE_MIB = 1024
# Where it lies when it is not on PATH: Debian's package, JetPack's too.
USUAL_PLACE = "/usr/src/tensorrt/bin/trtexec"
# A release for every kind of line, the newest last, with the pattern of its number in a shell.
KINDS = (("85*", "8.5"), ("[89]*", "8.6"), ("100[0-2]*", "10.0"), ("10*", "10.3"), ("*", "11.0"))
EXTENTS = ("min", "opt", "max")


class Files(NamedTuple):
    """What trtexec reads and writes."""

    graph: str
    plan: str
    layers: str
    timing: str


def build(
    trtexec: str,
    files: Files,
    recipe: Recipe,
    limits: Shapes,
    version: Version,
    workspace_mib: int = WORKSPACE_MIB,
) -> list[str]:
    """The line that builds an engine, as the arguments of a process."""
    named = {
        (profile.name, extent): shapes.spelled(recipe.inputs, *sizes)
        for profile in shapes.profiles(limits)
        for extent, sizes in zip(EXTENTS, profile[1:])
    }
    flags = _flags(files, recipe, version, str(workspace_mib), lambda p, e: named[p, e])
    return [trtexec, *flags]


def _flags(
    files: Files,
    recipe: Recipe,
    version: Version,
    workspace: str,
    spelled: Callable[[str, str], str],
) -> list[str]:
    traits = versions.traits(version)
    allowed = versions.precision(version, recipe)
    return [
        f"--onnx={files.graph}",
        f"--saveEngine={files.plan}",
        *[f"--{flag.lower()}" for flag in allowed],
        *(["--stronglyTyped"] if traits.strong_flag else []),
        *(["--preview=+profileSharing0806"] if traits.share_profiles else []),
        "--noTF32",
        *_profiles(traits.profiles, spelled),
        f"--memPoolSize=workspace:{workspace}",
        f"--timingCacheFile={files.timing}",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={files.layers}",
        traits.skip,
    ]


def _profiles(several: bool, spelled: Callable[[str, str], str]) -> list[str]:
    names = (shapes.PREFILL, shapes.DECODE) if several else (shapes.PREFILL,)
    found = []
    for index, name in enumerate(names):
        found += [f"--profile={index}"] if several else []
        found += [f"--{extent}Shapes={spelled(name, extent)}" for extent in EXTENTS]
    return found


def script(recipe: Recipe) -> str:
    """``trt/build.sh``: the lines for all releases that take the graph, for where we are not.

    An engine that it builds is nobody's but the caller's: ``slmq-edge build`` checks its own.
    """
    oldest = versions.parse(recipe.tensorrt)
    cases: list[str] = []
    for pattern, name in KINDS:
        version = versions.parse(name)
        if _newest_of(name) >= oldest:
            cases.append(f"{pattern})\n    {_in_shell(recipe, version)}\n    ;;")
        else:
            cases.append(f"{pattern})\n    {_refusal(recipe)}\n    ;;")
    return "\n".join([*_head(recipe), 'case "$version" in', *cases, "esac", ""])


def _newest_of(name: str) -> Version:
    """The newest release that takes the lines of ``name``'s kind."""
    names = [kind for _, kind in KINDS]
    following = names[names.index(name) + 1 :]
    if not following:
        return Version(999, 0, 0)
    major, minor, _ = versions.parse(following[0])
    return Version(major, minor - 1, 99) if minor else Version(major - 1, 99, 99)


def _head(recipe: Recipe) -> Sequence[str]:
    variables = [
        f'{profile.name}_{extent}="{shapes.spelled(recipe.inputs, *sizes)}"'
        for profile in shapes.profiles(shapes.of(recipe))
        for extent, sizes in zip(EXTENTS, profile[1:])
    ]
    return [
        "#!/bin/sh",
        "# Builds an engine with trtexec alone, on the machine that is to run it: model.plan.",
        "# slmq-edge build BUNDLE does the same, checks what came of it, and keeps it for",
        "# slmq-edge profile, which takes no other engines.",
        "set -eu",
        'cd "$(dirname "$0")"',
        f'trtexec="${{TRTEXEC:-$(command -v trtexec || echo {USUAL_PLACE})}}"',
        f'workspace="${{WORKSPACE:-{WORKSPACE_MIB}}}"',
        'version="$("$trtexec" --help 2>&1 | sed -n "s/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p;q")"',
        'test -n "$version" || { echo "$trtexec is no trtexec" >&2; exit 1; }',
        *variables,
    ]


def _in_shell(recipe: Recipe, version: Version) -> str:
    files = Files("model.onnx", "model.plan", "layers.json", "timing.cache")
    flags = _flags(
        files, recipe, version, '"$workspace"', lambda profile, extent: f'"${profile}_{extent}"'
    )
    return " \\\n        ".join(['exec "$trtexec"', *flags])


def _refusal(recipe: Recipe) -> str:
    return f'echo "this graph needs TensorRT {recipe.tensorrt} or later" >&2; exit 1'
