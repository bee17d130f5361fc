"""The torch runtime: a checkpoint in modules that hold integers and multiply integers.

    ops        types, and which operators a device gets      packing   weights as they lie in memory
    reference  the operators in plain torch: the definition  modules   linears, tables, rotations
    model      the decoder over a static cache               cache     that cache
    captured   a greedy step as a CUDA graph                 session   what the runner drives

Everything here imports torch; whoever offers it imports it when it is asked for.
"""
