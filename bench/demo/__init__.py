"""Fine-tune a real pretrained encoder with several methods and compare accuracy, memory and time.

``make demo`` or ``python -m bench.demo --help``. One file a room: assets.py (fetching), data.py (tasks), model.py
(loading), methods.py (what trains, learning rates), train.py (one run), measure.py (bytes), runner.py (one process a
run), report.py and chart.py (what comes out), tune.py (the learning-rate grid), main.py (the command line).
"""
