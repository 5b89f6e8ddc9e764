"""`pgsluice cloudflare`: what has to do with tunnels, beside the transport itself."""
