"""Fine-tune a real pretrained encoder with several methods and compare accuracy, memory and time.

``make demo`` or ``python -m demo --help``. One file a room: assets.py (fetching), data.py (tasks),
model.py (loading), methods.py (what trains, learning rates), train.py (one run), report.py and
chart.py (what comes out), tune.py (the learning-rate grid), main.py (the command line). Bytes are
counted by bench/memory.py, and bench/runner.py gives each run a process of its own: the demo
imports from `bench`, which imports nothing of it.
"""
