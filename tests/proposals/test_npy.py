"""Headers of ``.npy`` files; what damaged ones give is tested with the formats that read them."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest

from detector.proposals.npy import read_header


@pytest.fixture
def threads_switch_while_headers_are_parsed() -> Generator[None, None, None]:
    """Collect garbage often, and let other threads run meanwhile."""

    def switch(*_: object) -> None:
        time.sleep(1e-5)

    before = gc.get_threshold()
    gc.callbacks.append(switch)
    gc.set_threshold(10)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(switch)


@pytest.mark.usefixtures("threads_switch_while_headers_are_parsed")
def test_threads_read_headers_at_the_same_time() -> None:
    file = BytesIO()
    np.save(file, np.zeros(3, [(f"c{number}", "<u4") for number in range(30)]))
    with ThreadPoolExecutor(8) as threads:
        headers = list(threads.map(lambda _: read_header(BytesIO(file.getvalue())), range(400)))
    assert {header.shape for header in headers} == {(3,)}
