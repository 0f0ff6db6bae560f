"""A batch's journey, one verb per file: validate · split · claim · execute · record · finalize ·
cancel · recover.

`scan` reads an input file's lines, which `validate` does before a batch runs and `estimate` before
there is one.
"""
