"""Attacks on what is in use: faults put between a store and its server."""
