"""How Cloudflare answers what doesn't become a WebSocket, by name; texts as its edge and cloudflared have them."""

from __future__ import annotations

from dataclasses import dataclass

LOGIN = "https://team.cloudflareaccess.com/cdn-cgi/access/login/db.example.com?kid=1&redirect_url=%2F"


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    body: str = ""
    location: str = ""

    def encoded(self) -> bytes:
        """Return it as HTTP/1.1."""
        lines = [f"HTTP/1.1 {self.status} {self.reason}", "Server: cloudflare", "Connection: close"]
        lines += [f"Content-Length: {len(self.body)}"]
        lines += [f"Location: {self.location}"] if self.location else []
        return ("\r\n".join(lines) + "\r\n\r\n" + self.body).encode()


ANSWERS = {
    "login": Answer(302, "Found", location=LOGIN),
    "elsewhere": Answer(301, "Moved Permanently", location="https://www.example.com/"),
    "unauthorized": Answer(401, "Unauthorized"),
    "forbidden": Answer(403, "Forbidden", "<html><body>Forbidden. You don't have permission.</body></html>"),
    "blocked": Answer(403, "Forbidden", "error code: 1010"),
    "no-rule": Answer(404, "Not Found"),
    "no-service": Answer(503, "Service Unavailable"),
    "no-postgres": Answer(502, "Bad Gateway", "Unable to reach the origin service."),
    "no-cloudflared": Answer(530, "", "error code: 1033"),
    "no-dns": Answer(530, "", "<h1>Error <span>1016</span></h1>"),
    "limited": Answer(429, "Too Many Requests", "error code: 1015"),
    "page": Answer(200, "OK", "<html>hello</html>"),
    "broken": Answer(520, "", "error code: 520"),
}
