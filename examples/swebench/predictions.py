"""mini-swe-agent's ``preds.json``: instance id -> patch."""

from __future__ import annotations

import json
from pathlib import Path


def read_predictions(output: Path) -> dict[str, str]:
    """The patches so far; empty where there is no file yet or it is being written at this moment."""
    try:
        predictions = json.loads((output / "preds.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {instance: str(prediction.get("model_patch") or "") for instance, prediction in predictions.items()}
