"""`sparse-ft`: fine-tune, choose, estimate, and handle deltas, without writing a program.

| file | has |
|---|---|
| `main.py` | the command and its subcommands |
| `config.py`, `keys.py` | what a config file may say, key by key; the same as a table |
| `reading.py` | files and flags to a config; what is wrong with them, in words |
| `data.py`, `tables.py` | rows of CSV, JSON lines and text |
| `encoding.py`, `chats.py` | rows as tokens |
| `models.py`, `locating.py` | a model folder as a model for a task; `package:` paths |
| `choosing.py` | what trains: full, LoRA, a selection, a recipe, a plan |
| `training.py`, `judging.py` | a run from its config to a delta; whether it has learnt |
| `runs.py`, `writing.py` | the folder of a run; disks that are full |
| `trainer.py`, `trl_trainer.py`, `stopping.py` | the Trainer and its arguments; TRL's; Ctrl-C |
| `finetune.py`, `select.py`, … and `delta/` | a subcommand a file |

Its modules import torch and transformers where they use them (`library.py`), so that `--help`
comes at once. It takes the extra `cli`.
"""
