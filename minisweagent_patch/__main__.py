"""Entry point of ``python -m minisweagent_patch``."""

from __future__ import annotations

from minisweagent_patch.launcher import main

if __name__ == "__main__":
    main()
