"""Which files of a model repository vLLM needs. Pure."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

_OTHER_RUNTIMES = (
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "*.tflite",
    "*.mlmodel",
    "*.msgpack",
    "*.h5",
    "*.ot",
    "*.nemo",
)
_OTHER_FOLDERS = {"original", "onnx", "openvino", "coreml", "gguf", "mlx", ".git"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg", "*.mp4", "*.pdf")


def wanted(names: Sequence[str]) -> list[str]:
    """The files to download, of all names in a repository.

    Safetensors win over pickles, and `model*.safetensors` over the second copy of the same weights that
    Mistral's repositories keep in `consolidated*.safetensors`.
    """
    rest = [
        name
        for name in names
        if not _any(name, _OTHER_RUNTIMES + _PICTURES)
        and not _OTHER_FOLDERS & set(PurePosixPath(name).parts[:-1])
    ]
    top = [name for name in rest if "/" not in name and name.endswith(".safetensors")]
    if top:
        rest = [name for name in rest if not _any(name, _PICKLES)]
    if any(not name.startswith("consolidated") for name in top):
        rest = [name for name in rest if not fnmatchcase(name, "consolidated*.safetensors*")]
    return rest


def has_weights(names: Sequence[str]) -> bool:
    """Whether any of them is a file of weights that vLLM can load."""
    return any(_any(name, ("*.safetensors", *_PICKLES)) for name in names)


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)
