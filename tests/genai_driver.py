"""Run by a Python that has onnxruntime-genai: generate from a bundle, greedily, in two turns.

usage: genai_driver.py BUNDLE < {"prompt": [ids], "more": [ids], "new": count, "keep": bool,
                                "text": null or what to encode}

Between the turns it goes back before the last token, whose key and value are not in the cache yet,
and appends it again: `append_tokens` alone would leave them out. keep: false where the caches are
no shared buffers, which can only be emptied.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    import numpy as np
    import onnxruntime_genai as genai

    asked = json.load(sys.stdin)
    model = genai.Model(sys.argv[1])
    parameters = genai.GeneratorParams(model)
    length = len(asked["prompt"]) + len(asked["more"]) + 2 * asked["new"]
    parameters.set_search_options(max_length=length)
    generator = genai.Generator(model, parameters)

    def generate(ids: list[int]) -> list[int]:
        generator.append_tokens(np.array([ids], np.int32))
        found: list[int] = []
        while len(found) < asked["new"] and not generator.is_done():
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        return found

    answers: dict[str, Any] = {"version": genai.__version__, "first": generate(asked["prompt"])}
    answers["ended"] = generator.is_done()
    seen = asked["prompt"] + answers["first"]
    kept = len(seen) - 1 if asked["keep"] else 0
    generator.rewind_to(kept)
    answers["second"] = generate(seen[kept:] + asked["more"])
    if asked["text"] is not None:
        answers["encoded"] = [int(token) for token in genai.Tokenizer(model).encode(asked["text"])]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
