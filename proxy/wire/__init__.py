"""The PostgreSQL frontend/backend protocol: bytes in, bytes out, no I/O.

The manual's chapter "Frontend/Backend Protocol" is the reference for all of it.
"""
