"""`python -m safelight` is the `safelight` command."""

from __future__ import annotations

from safelight.cli import run

if __name__ == "__main__":
    run()
