"""What an update of SparsityRamp does: scores, the border between them, and zeros below it.

``weights`` and ``rows`` are the two kinds of update. Below them: ``score_pass`` (one look at all
scores, native or on torch ops), ``selection`` (which k numbers are the smallest, also over shards),
``scores`` (what it costs to drop a weight) and ``shards`` (where a local part lies in the whole).
"""
