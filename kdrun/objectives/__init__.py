"""Objectives: what the student is asked to match."""
