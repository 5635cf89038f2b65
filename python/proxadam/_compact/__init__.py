"""What compact does: cut out of a model what is dead, with equal outputs.

``compact`` holds the public functions. Below them: ``rounds`` (cut until nothing is left to cut),
``plan`` (which rows of a group can go, and why others cannot), ``facts`` (what is known of groups),
``heads`` (rows that go together), ``dependencies`` (all that torch-pruning is asked), ``probes``
(what is constant, and how far a unit reaches), ``unknowns`` (arithmetic on values of which some are
unknown), ``layers`` (Linear and convolutions), ``calls`` (inputs and outputs), ``checks`` and
``report``.
"""
