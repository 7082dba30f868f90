"""Dictionaries in other tools' formats, and rows from files.

Each format is a module with ``load(directory) -> Exchange`` and ``save(exchange, directory)``; :mod:`.detect` tells
which one a folder is in, :mod:`.exchange` converts to and from the dictionaries that learn, :mod:`.rows` reads rows.
"""
