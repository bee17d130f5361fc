"""One thread, sleeping while it waits: CI machines are small and shared."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.full_disk import full_disk
from tests.sshd import sshd

__all__ = ["full_disk", "sshd"]
