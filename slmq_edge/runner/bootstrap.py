"""First contact with a device: is its Python new enough, is the runner there, and if not, put it.

The host sends this file's text as a program for ``python3 -I -``, with a call of `main` at its end.
So it needs nothing of the package, and alone is written for Python 3.6, which is told so.
"""

import base64
import errno
import hashlib
import json
import os
import sys
import tempfile

OLDEST = (3, 8)
MARK = "slmq-edge: "  # as in runner/agent
RUNNERS = "runners"


def main(home: str, digest: str, payload: str = "") -> None:
    """Print what was found as one line of JSON.

    home: our folder, absolute or below the login's home. digest: SHA-256 of the runner's archive.
    payload: the archive itself in base64; empty to ask first.
    """
    found = {"python": list(sys.version_info[:3])}  # type: dict[str, object]
    if sys.version_info[:2] >= OLDEST:
        home = os.path.join(os.path.expanduser("~"), os.path.expanduser(home))
        found["home"] = os.path.normpath(home)
        path = os.path.join(home, RUNNERS, digest + ".pyz")
        try:
            found["runner"] = _there(path, digest) or _put(path, digest, payload)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full" if full else error.strerror
            found["text"] = "cannot write %s: %s" % (error.filename or path, what)  # noqa: UP031
    # A login's start-up file may have written half a line before us.
    sys.stdout.write("\n" + MARK + json.dumps(found) + "\n")


def _there(path: str, digest: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest() == digest
    except OSError:
        return False


def _put(path: str, digest: str, payload: str) -> bool:
    """Write beside its place, then rename: two hosts may do this at once."""
    content = base64.b64decode(payload)
    if hashlib.sha256(content).hexdigest() != digest:
        return False
    folder = os.path.dirname(path)
    os.makedirs(os.path.dirname(folder), 0o700, exist_ok=True)  # programs and models are ours alone
    os.makedirs(folder, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return True
