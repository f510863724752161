"""Networks that a file's tests have made."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def forgotten(request):
    """Those that a file has kept are let go of at its end: they are gigabytes, which garbage collection looks at anew
    in all that comes later in the process."""
    yield
    for kept in vars(request.module).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()
    gc.collect()
