"""An Arm machine without one: Python of an aarch64 Debian, every instruction emulated by qemu.

``python_with`` makes it, once, below ``.arm64``: Debian's packages by this machine's own apt-get,
wheels by pip. What it returns is a python3 as any other, a virtual environment's: it takes the same
arguments, it is its own ``sys.executable``, and so what it starts is emulated too.

Only the instructions, and what /proc/cpuinfo says of them, are Arm's. The kernel, its /sys and its
memory are this machine's, the emulator's memory counts as the process's own, and instructions take
30 to 300 times as long, each its own: no time, memory or power of it means anything.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".arm64"
# Debian 12, as a Raspberry Pi's system; of its qemus, one that emulates /proc/cpuinfo. With the
# host's text in it, onnxruntime dies of a segmentation fault.
RELEASE, BACKPORTS = "bookworm", "bookworm-backports"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
PYTHON, ABI = "3.11", "cp311"
WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
# Which kernels multiply: a Raspberry Pi 4's, a Raspberry Pi 5's (a Jetson Orin's A78AE is its
# like), and those for 8-bit matrices, SVE and SME besides.
NO_DOT_PRODUCTS, DOT_PRODUCTS, EVERYTHING = "cortex-a72", "cortex-a76", "max"
WRAPPER = """\
#!/bin/sh
# -0: the interpreter takes this file for itself, and starts it again for its children.
export QEMU_CPU="${{QEMU_CPU:-{cpu}}}"
exec {qemu} -L {system} -0 "$0" {system}/usr/bin/python{version} "$@"
"""


def python_with(onnxruntime: str) -> Path:
    """A python3 of aarch64 with this release of onnxruntime, and numpy: all that a runner needs.

    The variable ``QEMU_CPU`` chooses the core; without it, one with dot products. Skips where
    something that it is made of cannot be had.
    """
    home = HOME / f"onnxruntime-{onnxruntime}"
    python, ready = home / "bin" / "python3", home / "ready"
    if ready.exists():
        return python
    qemu, system = _system()
    shutil.rmtree(home, ignore_errors=True)
    python.parent.mkdir(parents=True)
    _pip(home / "lib" / f"python{PYTHON}" / "site-packages", [f"onnxruntime=={onnxruntime}"])
    (home / "pyvenv.cfg").write_text(f"home = {system}/usr/bin\n")
    quoted = {"qemu": shlex.quote(str(qemu)), "system": shlex.quote(str(system))}
    python.write_text(WRAPPER.format(cpu=DOT_PRODUCTS, version=PYTHON, **quoted))
    python.chmod(0o755)
    ready.touch()
    return python


def _system() -> tuple[Path, Path]:
    """The emulator, and the root of the emulated system's files."""
    qemu, system, ready = HOME / "qemu-aarch64", HOME / "system", HOME / "ready"
    if not ready.exists():
        shutil.rmtree(system, ignore_errors=True)
        scratch = HOME / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        packages, emulator = _download(scratch)
        for package in packages:
            _done(["dpkg-deb", "--extract", str(package), str(system)], "unpacking Debian")
        _unpack(emulator, "./usr/bin/qemu-aarch64", qemu)
        shutil.rmtree(scratch)
        ready.touch()
    return qemu, system


def _download(scratch: Path) -> tuple[list[Path], Path]:
    """Fetch Debian's packages: the system's, for arm64, and the emulator's, for this machine."""
    if sys.platform != "linux" or shutil.which("apt-get") is None:
        pytest.skip("the emulated machine is made by Debian's apt-get, which is not here")
    if not KEYS.exists():
        pytest.skip(f"{KEYS} is missing: apt-get install debian-archive-keyring")
    here = _done(["dpkg", "--print-architecture"], "asking dpkg").strip()
    apt = _apt(scratch, here)
    _done([*apt, "update"], "reading Debian's lists")
    wanted = ["--yes", "--no-install-recommends", "--download-only", "install", *PACKAGES]
    _done([*apt, *wanted], "fetching Debian's packages for arm64")
    _done([*apt, "download", f"qemu-user:{here}/{BACKPORTS}"], "fetching qemu", scratch)
    return sorted((scratch / "cache" / "archives").glob("*.deb")), next(scratch.glob("qemu*.deb"))


def _apt(scratch: Path, here: str) -> list[str]:
    """apt-get with lists, a cache and a state of its own; with this machine's mirror and proxy."""
    fields = ["--format", "$(REPO_URI)", "ORIGIN: Debian", "LABEL: Debian", "IDENTIFIER: Packages"]
    mirrors = _done(["apt-get", "indextargets", *fields], "asking apt for a mirror").split()
    if not mirrors:
        pytest.skip("this machine's apt knows no mirror of Debian (or needs apt-get update first)")
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()  # nothing is installed: everything needed is fetched
    architectures = sorted({"arm64", here})
    options = f"[arch={','.join(architectures)} signed-by={KEYS}]"
    lines = [f"deb {options} {mirrors[0]} {suite} main\n" for suite in (RELEASE, BACKPORTS)]
    (scratch / "sources.list").write_text("".join(lines))
    settings = {
        "Dir::Etc::SourceList": f"{scratch}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": f"{scratch}/state",
        "Dir::State::status": f"{scratch}/status",
        "Dir::Cache": f"{scratch}/cache",
        "APT::Architecture": "arm64",
        "APT::Sandbox::User": "root",  # the user who may read a home's files
        "Acquire::Languages": "none",
    }
    pairs = [*settings.items(), *(("APT::Architectures::", name) for name in architectures)]
    return ["apt-get", "--quiet=2", *(part for k, v in pairs for part in ("-o", f"{k}={v}"))]


def _unpack(package: Path, name: str, to: Path) -> None:
    """One file of a package that has 400 MB of others."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as unpacked:
        with tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive:
            for entry in archive:
                if entry.name == name:
                    found = archive.extractfile(entry)
                    assert found is not None, f"{name} is no file"
                    to.write_bytes(found.read())
                    break
        unpacked.kill()
    to.chmod(0o755)


def _pip(folder: Path, requirements: Sequence[str]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wheel = ["--implementation", "cp", "--python-version", PYTHON, "--only-binary=:all:"]
    wheel += [f"--platform={name}_aarch64" for name in WHEELS]
    wheel += [f"--abi={name}" for name in (ABI, "abi3", "none")]
    # Of what onnxruntime declares, running a graph needs numpy alone.
    where = ["--target", str(folder), "--no-deps", "--no-compile"]
    _done([*pip, *wheel, *where, *requirements, "numpy"], "fetching wheels for aarch64")


def _done(command: Sequence[str], what: str, cwd: Path | None = None) -> str:
    """Run a command; skip, with its last words, where it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = " | ".join(done.stderr.strip().splitlines()[-2:]) or f"exit code {done.returncode}"
        pytest.skip(f"{what} failed: {last}")
    return done.stdout
