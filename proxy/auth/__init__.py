"""API keys: what they are, where they come from, and the identity that is signed for them."""
