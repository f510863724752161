"""Kinds of networks to a comparison; see registry.Stage."""

TEACHER, ALONE, DISTILLED = "teacher", "student", "distill"
