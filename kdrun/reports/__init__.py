"""What runs say, for people: tables and figures."""
