"""What bench/formats.py is made of, beside what it shares with bench/train.py.

``ways`` are the ways to store weights and state, ``recipes`` say how long each task is trained,
``plan`` says which runs there are, ``runs`` trains one of them, ``report`` and ``figure`` show
what came out.
"""
