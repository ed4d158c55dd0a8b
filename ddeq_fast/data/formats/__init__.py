"""Files of clouds, by format: `arrays` (NumPy), `ply`, `off`, `text`; `reading` and `table` are for all of them.

A reader gives the points (n, d) of a path, a writer the bytes of points; `ddeq_fast.data.files` chooses one.
"""
