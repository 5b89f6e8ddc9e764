"""Ways to a peer: each gives an asyncio transport, and an Outlet through which to write to it."""
