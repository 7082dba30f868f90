"""What both sides of Hydrophone share: names, Arrow schemas, wire frames, tables and REST models.

The SDK (``hydrophone``) and the daemon (``hydrophoned``) import this package and never each other.
``rest`` alone needs pydantic and is imported by those who speak REST; everything else needs
msgpack, numpy and pyarrow only.
"""

__version__ = "0.1.0"
