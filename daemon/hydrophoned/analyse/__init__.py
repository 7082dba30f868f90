"""Analyses on request, of codes and rows that are there already. Pure numerics."""
