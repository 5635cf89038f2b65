"""What bench/rows.py is made of, beside what it shares with bench/train.py.

``recipes`` say how each task is trained and what is tuned, ``arms`` are the ways to dead rows,
``runs`` trains one of them and keeps its weights, ``cut`` makes small networks of them, ``latency``
times these, ``report`` and ``figure`` show what came out.
"""
