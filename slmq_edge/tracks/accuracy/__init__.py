"""Track 1, accuracy: lm-eval's questions, answered by any runtime on any machine.

`tasks` are the questions, lm-eval's own. `harness` turns them into token sequences and their scores
into lm-eval's metrics. `scorers` score sequences: torch, simulated, and what the runner runs, here
or on a device. `results` is eval.json, `gap` the difference between several.
"""
