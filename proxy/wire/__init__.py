"""The PostgreSQL frontend/backend protocol: bytes in, bytes out, no I/O (manual, chapter "Frontend/Backend Protocol")."""
