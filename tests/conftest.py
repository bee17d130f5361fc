"""One thread, sleeping while it waits: CI machines are small and shared."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell that starts us in the background has SIGINT ignored, and what tests interrupt inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hypothesis import settings

from tests.full_disk import full_disk
from tests.sshd import sshd

# make check: fewer examples of each property, the same each time.
settings.register_profile("brief", max_examples=40, derandomize=True, deadline=None)

__all__ = ["full_disk", "sshd"]
