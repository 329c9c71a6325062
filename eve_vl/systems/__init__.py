"""Related systems.

Each folder registers itself by its entry_points.txt, as an installed package does. No system
imports another one, and nothing outside this folder imports a system.
"""
