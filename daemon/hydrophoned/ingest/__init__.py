"""Ingestion: sockets, sessions and producers, up to the queue of each learner. Only this package speaks the wire."""
