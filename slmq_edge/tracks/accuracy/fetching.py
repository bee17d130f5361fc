"""Rows from the hub, or one line that says why not; lm-eval and datasets without their chatter."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from slmq_edge.errors import NotFound
from slmq_edge.tracks.accuracy.questions import Source

LIBRARIES = ("huggingface_hub", "httpx", "httpcore", "requests")  # whose errors are the network's
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")


def wikitext_lines() -> tuple[list[str], Source]:
    """WikiText-2's test lines from the hub.

    Raises:
        NotFound: the hub cannot be reached.
    """
    import datasets

    with quiet(), hub():
        rows = datasets.load_dataset(*WIKITEXT, split="test")
    return list(rows["text"]), Source("hub", "/".join(WIKITEXT))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's and datasets' bars and remarks from our lines on stderr."""
    import datasets
    import lm_eval.api.task

    told = logging.getLogger("lm_eval")
    level, bar, shown = told.level, lm_eval.api.task.tqdm, datasets.are_progress_bars_disabled()
    told.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda rows, **_: rows
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        told.setLevel(level)
        lm_eval.api.task.tqdm = bar
        if not shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def hub() -> Iterator[None]:
    """Let rows be fetched, or be read from the cache where the hub is out of reach.

    Raises:
        NotFound: neither.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # what it would warn of is in the error that we raise
    reached = _is_reached()
    places = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        if not reached:  # else every file is tried for 25 s
            for place in places:
                place.HF_HUB_OFFLINE = True
        yield
    except Exception as error:
        # datasets says of what is not in its cache, offline, that the value is wrong.
        library = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError | ValueError) and library not in LIBRARIES:
            raise
        words = " ".join(str(error).split())[:200] or type(error).__name__
        why = words.rstrip(".") if reached else "it is out of reach, and no copy of them is here"
        raise NotFound(
            f"cannot fetch questions from the hub: {why}. Without a network, --data-dir FOLDER "
            "reads them from local files"
        ) from error
    finally:
        for place, was in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = was


def _is_reached() -> bool:
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(WIKITEXT[0], timeout=10)
    except Exception as error:  # whose HTTP library changed (huggingface_hub 0, 1)
        library = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and library not in LIBRARIES:
            raise
        return False
    return True
