"""The torch runtime: a checkpoint in modules that hold integers and multiply integers.

    ops        types, and which operators a device gets      packing   weights as they lie in memory
    reference  the operators in plain torch: the definition  modules   linears, tables, rotations
    cache      keys and values, allocated once               attention of prompts over it
    model      the decoder                                   captured  a greedy step as a CUDA graph
    session    what the runner drives

Everything here imports torch; whoever offers it imports it when it is asked for.
"""
