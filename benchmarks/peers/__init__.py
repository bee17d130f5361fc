"""Our bundles against what people use instead: llama.cpp, onnxruntime-genai, optimum.

Every contestant computes the same shape with random weights (size and speed do not depend on their
values) on the same tokens, in a process of its own, at batch 1, greedily, with logits of the last
position where the runtime lets one choose. A repetition at depth D starts from an empty cache:

    whole     D + p tokens go in, until the first new token is known; D = 0: what others call
              prefill, or time to first token
    appended  of these, the last p, onto the D that are in the cache already; not where a runtime
              takes several tokens only from an empty cache, as our own runner does
    decode    n more tokens, one by one, with D + p in the cache

Contestants take turns, round after round, so that a machine that drifts drifts for all. A worker
is started, loads, warms up, repeats, and ends before the next one starts; loading is not in the
times above. Memory is read once in a process that loads and takes 512 tokens, nothing else.

    python -m benchmarks.peers [--shape SmolLM-135M] [--contestant ours-w8a8] [--threads 1]
        [--depth 0] [--rounds 3] [--work FOLDER] [-o results.json] [--markdown table.md]
"""
