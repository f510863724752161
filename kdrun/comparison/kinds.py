"""Kinds of networks to a comparison, by what their stage trains; see registry.Stage."""

TEACHER, ALONE, DISTILLED = "teacher", "student", "distill"
