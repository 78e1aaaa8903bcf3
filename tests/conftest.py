"""One thread for torch: networks of toy size only wait for a second one, and on a busy machine they wait long."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
