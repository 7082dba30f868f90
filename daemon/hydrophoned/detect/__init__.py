"""Watching a stream: whether it has drifted from a reference, where, since when; and what in it is new.

Pure numerics: no asyncio, sockets, HTTP, SQL, clock. Units and times come in as data.
"""
