"""Keeping transformers silent while it works for us, and only then."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars, log lines and warnings inside the block.

    Its verbosity and progress bars are put back as they were afterwards, whatever happens.
    """
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions carry no annotations

    hub = getLogger("huggingface_hub")
    verbosity, hub_level = logging.get_verbosity(), hub.level
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub.setLevel(ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if had_bars:
            logging.enable_progress_bar()
