"""Fusions into custom ops: where they apply and how they are built, one file per op."""
