"""What every answer must be, beside what the OpenAPI document says of it."""

import schemathesis

# A call that was given little time may end so; nothing else may end as a server's error.
LATE = {("503", "OUTCOME_UNKNOWN"), ("503", "NO_LEADER"), ("503", "BEHIND"), ("504", "DEADLINE")}


@schemathesis.check
def says_why(ctx, response, case):
    """A failure is a problem with a reason, and never this server's fault."""
    if response.status_code < 400:
        return
    kind = (response.headers.get("content-type") or [""])[0]
    assert kind == "application/problem+json", f"{response.status_code} as {kind!r}"
    problem = response.json()
    assert problem["status"] == response.status_code, problem
    assert problem["reason"] not in ("INTERNAL", "UNREADABLE", "DAMAGED", "UNSPECIFIED", "TRANSPORT"), problem
    if response.status_code >= 500:
        given = (case.query or {}).get("timeout_ms")
        told = (case.query or {}).get("consistency"), given
        assert (str(response.status_code), problem["reason"]) in LATE, (problem, told)
        assert given is not None or problem["reason"] == "BEHIND", (problem, told)
