"""Profiler traces: is the fusion really on?"""
