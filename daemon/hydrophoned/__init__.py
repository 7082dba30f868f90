"""The daemon: takes activations, learns a sparse dictionary of each stream, stores and answers what it learned."""
