"""The same as ``slmq-edge``: ``python -m slmq_edge``."""

from slmq_edge.cli import main

main()
