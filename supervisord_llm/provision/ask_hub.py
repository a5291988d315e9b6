"""The child process that asks a model hub about a model: `python -m supervisord_llm.provision.ask_hub`.

Reads one JSON object from stdin:

    {"repo": "org/name", "revision": "<commit, branch or tag>" | null, "cache": "<directory>"}

and writes JSON lines to stdout, each as soon as it is known:

    {"config": {…config.json…}}
    {"weights": [[role, dtype, parameters, bytes], …]}

or {"error": "…"}. Only config.json, the index and the headers of the weights are fetched.
"""

import json
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

from supervisord_llm.core.sizing.architecture import Architecture, parse
from supervisord_llm.core.sizing.fields import UnknownArchitecture
from supervisord_llm.core.sizing.weights import Tensor, Weights, tally
from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision.fetch import explained, tell


def main() -> None:
    """Tell what stdin asks for."""
    asked = json.load(sys.stdin)
    repo, revision, cache = asked["repo"], asked["revision"], Path(asked["cache"])
    try:
        with explained(repo, revision, cache):
            commit, config = _config(repo, revision, cache)
        tell({"config": config})
        architecture = parse(config)
        with explained(repo, revision, cache):
            weights = _weights(repo, commit, architecture)
        tell({"weights": [astuple(group) for group in weights]})
    except (ProvisionError, UnknownArchitecture) as why:
        tell({"error": str(why)})


def _config(repo: str, revision: str | None, cache: Path) -> tuple[str, dict[str, Any]]:
    """The commit, and its config.json."""
    import huggingface_hub as hub  # here, so that importing this module is cheap

    commit = str(hub.HfApi().model_info(repo, revision=revision).sha)
    file = hub.hf_hub_download(repo, "config.json", revision=commit, cache_dir=cache)
    config = json.loads(Path(file).read_bytes())
    if not isinstance(config, dict):
        raise ProvisionError(f"cannot use the config.json of {repo}: not a JSON object; correct source")
    return commit, config


def _weights(repo: str, commit: str, architecture: Architecture) -> Weights:
    import huggingface_hub as hub

    found = hub.HfApi().get_safetensors_metadata(repo, revision=commit)
    tensors = (
        Tensor(name, str(entry.dtype), tuple(entry.shape), entry.data_offsets[1] - entry.data_offsets[0])
        for file in found.files_metadata.values()
        for name, entry in file.tensors.items()
    )
    return tally(tensors, architecture)


if __name__ == "__main__":
    main()
