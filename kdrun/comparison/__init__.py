"""Runs compared: gathered into a table, grouped, tested. No TensorFlow in here."""
