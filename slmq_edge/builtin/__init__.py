"""Two small language models that travel with the package, and the world they know.

`demo-llama` and `demo-qwen2` are Hugging Face style folders with fp16 weights, trained by
`train.py` on the text of `world.py`. They need no download, so every check of a
quantization method can run on a real, trained model with a real loss.
"""

from pathlib import Path

MODELS: tuple[str, ...] = ("demo-llama", "demo-qwen2")


def folder(name: str) -> Path:
    """Return the folder of a built-in model; `AutoModelForCausalLM` can load it."""
    if name not in MODELS:
        raise KeyError(f"no built-in model {name!r}; the built-in models are {', '.join(MODELS)}")
    return Path(__file__).parent / name
