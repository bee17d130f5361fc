"""The matrix as data: plan.toml becomes cells, each a child process that runs one verb.

    plan         plan.toml, read and checked                    -> Plan
    verbs        a section's words                              -> options of that verb
    matrix       models x methods x schemes x targets x devices -> cells, and what they need
    feasible     each cell's request, as its own verb would refuse it
    present      whether the GPU or board of a cell is there
    estimates    seconds, before any of it starts
    folder       OUT: bench.json, what became of every cell, the lock
    schedule     which cells may start now
    child        one cell's process, and the end of it
    engines      what starts cells: this machine, or (ray) a cluster
    run          the loop over these

A cell is done when its outputs are there and whole, and its status names the same command.
"""
