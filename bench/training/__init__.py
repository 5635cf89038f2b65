"""What bench/train.py is made of.

``data`` and ``models`` make a task, ``recipes`` say how it is trained and what is tuned, ``arms``
are the ways to reach a sparsity, ``runs`` trains one of them, ``plan`` says which runs there are,
``store`` keeps what they reached, ``report`` and ``figure`` show it. ``options``
are those of the command line. ``formats`` is what bench/formats.py has beside all this, and
``rows`` what bench/rows.py has.
"""
