"""What `pgsluice cloudflare render` and `check` do.

- answers: what is asked for, and what may be answered
- client: pgsluice.yaml of the proxy's side: the tunnel's hostnames, references instead of secrets
- tunnel: cloudflared's own config.yml
- terraform, hcl: the tunnel, its hostnames and their protection at Cloudflare
- workloads: compose files, Kubernetes manifests and systemd units, from the files in deploy/
- documents: YAML that is read back; files that are all written, or none
- rendering: all of these, by what is wanted
- checking: the way through a tunnel, step by step, for `pgsluice cloudflare check`
"""
