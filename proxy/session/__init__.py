"""Clients: their login, their statements, their cancel requests."""
