"""The command lines and environments that the demo and the swebench-lite runner share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.processes import get

READY_SECONDS = 60.0


def engine_command(port: int, *, model: str, kv_tokens: int, speed: float, preset: str, script: Path) -> list[str]:
    """An emulated engine on loopback."""
    return [
        *(sys.executable, "-m", "thunderagent", "engine", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", model, "--kv-tokens", str(kv_tokens), "--speed", f"{speed:g}", "--preset", preset),
        *("--script", str(script)),
    ]


def router_command(
    port: int, backends: Sequence[str], policy: str, *, host: str = "127.0.0.1", options: Sequence[str] = ()
) -> list[str]:
    """The router in front of the backends; ``options`` are further flags of ``thunderagent serve``."""
    return [
        *(sys.executable, "-m", "thunderagent", "serve", "--host", host, "--port", str(port)),
        *("--backends", ",".join(backends), "--policy", policy, *options),
    ]


def agents_command(
    *,
    subset: str,
    split: str,
    workers: int,
    model: str,
    router: str,
    output: Path,
    environment_class: str,
    options: Sequence[str] = (),
) -> list[str]:
    """mini-swe-agent's batch runner under the patch, with its own configuration and these settings on top."""
    settings = (
        "swebench.yaml",
        f"model.model_name=hosted_vllm/{model}",
        f"model.model_kwargs.api_base={router}/v1",
        "model.model_kwargs.timeout=7200",
        "model.cost_tracking=ignore_errors",
    )
    return [
        *(sys.executable, "-m", "minisweagent_patch", "swebench", "--subset", subset, "--split", split),
        *("--workers", str(workers), "--environment-class", environment_class, "--output", str(output)),
        *(argument for setting in settings for argument in ("-c", setting)),
        *options,
    ]


def agents_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Settings for every run of mini-swe-agent: no banner, no proxy towards the router, litellm's own price list.

    The price list would be fetched otherwise, at each start. ``base`` None takes this process's environment.
    """
    environment = dict(os.environ if base is None else base)
    # It would keep `-m minisweagent_patch` from being found in the repository.
    environment.pop("PYTHONSAFEPATH", None)
    loopback = "127.0.0.1,localhost"
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = f"{environment[name]},{loopback}" if environment.get(name) else loopback
    return {**environment, "MSWEA_SILENT_STARTUP": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def offline_environment(base: Mapping[str, str], home: Path) -> dict[str, str]:
    """The same without any network: a local data set, and caches and settings below ``home``."""
    return {
        **base,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(home / "huggingface"),
        "HF_DATASETS_CACHE": str(home / "huggingface" / "datasets"),
        "MSWEA_GLOBAL_CONFIG_DIR": str(home / "mini-swe-agent"),
        # A failing call is a defect here, so it is not repeated for minutes.
        "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "3",
    }


def served_models(backend: str) -> list[str]:
    """The models that a backend names at ``/v1/models``. Raises OSError, or ValueError for an odd answer."""
    answer = json.loads(get(f"{backend}/v1/models"))
    try:
        return [str(model["id"]) for model in answer["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{backend}/v1/models is not a list of models") from error
