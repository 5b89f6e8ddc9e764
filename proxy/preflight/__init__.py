"""Whether the live servers are what the proxy relies on: rows of their catalogues, to findings, to a report.

`facts` asks (with what `queries` holds), `hosts`, `roles`, `grants`, `rls`, `functions`, `settings` and `schema`
judge without asking anything, `live` does both for a whole configuration, `gate` for what `serve` refuses.
"""
