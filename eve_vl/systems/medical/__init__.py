"""Medical systems, M3AE and MedFLIP, with the data that they need.

`readers` opens published medical data, `phantoms` generates schematic radiographs.
"""
