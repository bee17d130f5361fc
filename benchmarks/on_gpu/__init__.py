"""What `benchmarks.gpu` is made of: one call on a GPU machine without network, one results file.

material  what is carried there: configs, tokenizers, WikiText-2   -> a folder of 17 MB
steps     what is done, most important first                      -> Step, ...
engine    steps as child processes, until the minutes are over    -> Outcome, ...
record    results.json: whole after every step, taken up again    -> Record
machine   GPU, driver, clocks, limits, versions                   -> facts
figures   run.json and checkpoint.json of every artifact          -> rows
paper     these beside Tables 3 and 4 of SLMQuant                 -> rows, and what differs
table     rows                                                    -> Markdown
"""
