"""Measurements of the suite itself: power, false alarms, identification, cost. Each is a command; none is a test."""
