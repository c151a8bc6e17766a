"""Kills small runs again and again, and compares what is left with runs that nobody killed: ``make soak``."""
